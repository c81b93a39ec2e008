//! The table of cases. Order is the order of running.

mod first_light;
mod kube_runtime;
mod two_nodes;

use crate::harness::{Body, Case};

macro_rules! cases {
    ($($group:literal: $module:ident { $($name:ident),* $(,)? })*) => {
        &[$($(Case {
            group: $group,
            name: stringify!($name),
            body: Body::Code(|sandbox| Box::pin($module::$name(sandbox))),
            alone: true,
        },)*)*]
    };
}

/// Shell sessions, each `FOLDER: FILE`, with `(true)` where nothing else may run beside it.
macro_rules! transcripts {
    ($($group:ident: $name:ident $(($alone:literal))?),* $(,)?) => {
        &[$(Case {
            group: stringify!($group),
            name: stringify!($name),
            body: Body::Transcript(include_str!(concat!("../", stringify!($group), "/", stringify!($name), ".txt"))),
            alone: false $(|| $alone)?,
        },)*]
    };
}

pub fn all() -> impl Iterator<Item = &'static Case> {
    CODE.iter().chain(TRANSCRIPTS)
}

const TRANSCRIPTS: &[Case] = transcripts! {
    kubectl: reading,
    kubectl: creating,
    kubectl: applying,
    kubectl: labelling,
    kubectl: describing,
    kubectl: rollouts,
    kubectl: running,
    kubectl: access,
    kubectl: discovery,
    kubectl: custom,
    kubectl: nodes(true),
    helm: charts,
};

const CODE: &[Case] = cases! {
    "first-light": first_light {
        a_deployment_becomes_running_pods_behind_a_service,
        configuration_reaches_the_containers,
        kubectl_shows_what_upstream_shows,
        logs_are_followed_and_limited,
        exec_carries_input_output_and_exit_codes,
        files_are_copied_both_ways,
        ports_are_forwarded,
        a_rolling_update_fails_no_request,
        a_deleted_pod_is_replaced,
        a_killed_container_is_restarted_with_back_off,
        broken_pods_say_why,
        a_cordoned_node_takes_no_pods,
        a_deleted_namespace_takes_everything_with_it,
    }
    "kube-runtime": kube_runtime {
        a_watcher_begins_with_what_is_there_and_follows,
        a_reflector_mirrors_the_cluster,
        a_controller_with_a_finalizer_owns_and_tidies,
        pods_are_awaited_entered_and_read,
    }
    "two-nodes": two_nodes {
        services_reach_pods_on_both_nodes,
        the_pods_of_a_lost_node_are_replaced,
    }
};
