//! The next steps of a StatefulSet. Pure.
//!
//! Unless told to work in parallel, pods are made from the lowest number on, each after the one before is available, and
//! given up from the highest on, each after the one above is gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use coxswain_api::features::Feature;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};

use super::{REVISION_LABEL, identity};
use crate::common::slim::SlimPod;
use crate::common::{int_or_percent, owners, pods};

pub(super) struct View<'a> {
    spec: StatefulSetSpec,
    generation: Option<i64>,
    current: &'a str,
    update: &'a str,
    /// The pods whose numbers are wanted.
    slots: BTreeMap<i32, Option<Arc<SlimPod>>>,
    /// The other ones.
    condemned: BTreeMap<i32, Arc<SlimPod>>,
    now: Timestamp,
    /// `maxUnavailable` counts.
    several: bool,
}

#[derive(Clone)]
pub(super) enum Step {
    /// `old` asks for the revision that an update has not reached.
    Create {
        ordinal: i32,
        old: bool,
    },
    /// A pod that cannot start may lack its claims.
    EnsureClaims {
        ordinal: i32,
    },
    Delete {
        pod: Arc<SlimPod>,
        scaled_down: bool,
    },
}

impl<'a> View<'a> {
    pub(super) fn new(
        set: &StatefulSet,
        pods: &[Arc<SlimPod>],
        current: &'a str,
        update: &'a str,
        now: Timestamp,
    ) -> Self {
        let spec = set.spec.clone().unwrap_or_default();
        let start = start_of(&spec);
        let end = start + spec.replicas.unwrap_or(1);
        let mut slots: BTreeMap<i32, Option<Arc<SlimPod>>> = (start..end).map(|ordinal| (ordinal, None)).collect();
        let mut condemned = BTreeMap::new();
        for pod in pods {
            let Some(ordinal) = identity::ordinal_of(set, pod) else { continue };
            match slots.get_mut(&ordinal) {
                Some(slot) => *slot = Some(pod.clone()),
                None => {
                    condemned.insert(ordinal, pod.clone());
                }
            }
        }
        let several = Feature::MaxUnavailableStatefulSet.enabled();
        Self { spec, generation: set.metadata.generation, current, update, slots, condemned, now, several }
    }

    fn pods(&self) -> impl Iterator<Item = &Arc<SlimPod>> {
        self.slots.values().flatten().chain(self.condemned.values())
    }

    fn is_available(&self, pod: &SlimPod) -> bool {
        is_running_and_ready(pod) && pods::is_available(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    fn is_unavailable(&self, pod: &SlimPod) -> bool {
        owners::is_deleting(&pod.metadata) || !self.is_available(pod)
    }

    /// An update has this pod before it.
    fn is_outdated(&self, pod: &SlimPod) -> bool {
        owners::label(&pod.metadata, REVISION_LABEL) != Some(self.update) && !owners::is_deleting(&pod.metadata)
    }

    /// How many pods an update may make unavailable at once.
    fn max_unavailable(&self) -> usize {
        let rolling = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let limit = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        match limit.filter(|_| self.several) {
            // A small share rounds down to none, with which no update would ever begin.
            Some(limit) => {
                let most = int_or_percent::resolve(limit, self.spec.replicas.unwrap_or(1), false);
                most.unwrap_or(1).max(1) as usize
            }
            None => 1,
        }
    }

    fn in_order(&self) -> bool {
        self.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    /// The counts as they are before any step.
    pub(super) fn status(&self, before: &StatefulSetStatus) -> StatefulSetStatus {
        let count = |test: &dyn Fn(&SlimPod) -> bool| self.pods().filter(|pod| test(pod)).count() as i32;
        let of_revision = |revision: &str| {
            count(&|pod| {
                !owners::is_deleting(&pod.metadata) && owners::label(&pod.metadata, REVISION_LABEL) == Some(revision)
            })
        };
        StatefulSetStatus {
            observed_generation: self.generation,
            replicas: self.pods().count() as i32,
            ready_replicas: some(count(&|pod| is_running_and_ready(pod))),
            available_replicas: Some(count(&|pod| self.is_available(pod))),
            current_replicas: some(of_revision(self.current)),
            updated_replicas: some(of_revision(self.update)),
            current_revision: Some(self.current.to_owned()),
            update_revision: Some(self.update.to_owned()),
            collision_count: before.collision_count,
            conditions: before.conditions.clone(),
        }
    }
}

fn some(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

fn start_of(spec: &StatefulSetSpec) -> i32 {
    spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0)
}

fn is_running_and_ready(pod: &SlimPod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

/// Whether a pod of this number is to be of the revision from before the update.
fn wants_old(view: &View, ordinal: i32, before: &StatefulSetStatus) -> bool {
    let strategy = view.spec.update_strategy.as_ref();
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
        return false;
    }
    let start = start_of(&view.spec);
    match strategy.and_then(|strategy| strategy.rolling_update.as_ref()) {
        None => ordinal < start + before.current_replicas.unwrap_or(0),
        Some(rolling) => ordinal < start + rolling.partition.unwrap_or(0),
    }
}

pub(super) fn plan(view: &View, before: &StatefulSetStatus) -> Vec<Step> {
    let in_order = view.in_order();
    let mut steps = Vec::new();
    for (ordinal, slot) in &view.slots {
        let Some(pod) = slot else {
            steps.push(Step::Create { ordinal: *ordinal, old: wants_old(view, *ordinal, before) });
            if in_order {
                return steps;
            }
            continue;
        };
        if pods::is_terminated(pod) {
            // The new pod is made once the old one is gone.
            if !owners::is_deleting(&pod.metadata) {
                steps.push(Step::Delete { pod: pod.clone(), scaled_down: false });
            }
            if in_order {
                return steps;
            }
            continue;
        }
        if pods::phase(pod) == "Pending" && !owners::is_deleting(&pod.metadata) {
            steps.push(Step::EnsureClaims { ordinal: *ordinal });
        }
        if in_order && view.is_unavailable(pod) {
            return steps;
        }
    }
    let first_unavailable = view.pods().find(|pod| view.is_unavailable(pod)).map(|pod| owners::name(&pod.metadata));
    for pod in view.condemned.values().rev() {
        if owners::is_deleting(&pod.metadata) {
            if in_order {
                return steps;
            }
            continue;
        }
        if in_order && !is_running_and_ready(pod) && first_unavailable != Some(owners::name(&pod.metadata)) {
            return steps;
        }
        steps.push(Step::Delete { pod: pod.clone(), scaled_down: true });
        if in_order {
            return steps;
        }
    }
    let strategy = view.spec.update_strategy.as_ref();
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
        return steps;
    }
    let partition = strategy.and_then(|strategy| strategy.rolling_update.as_ref()?.partition).unwrap_or(0);
    let from = start_of(&view.spec) + partition;
    if view.several {
        let is_unavailable = |slot: &&Option<Arc<SlimPod>>| slot.as_ref().is_none_or(|pod| view.is_unavailable(pod));
        let unavailable = view.slots.values().filter(is_unavailable).count();
        let outdated =
            view.slots.range(from..).rev().filter_map(|(_, slot)| slot.as_ref()).filter(|p| view.is_outdated(p));
        let more = view.max_unavailable().saturating_sub(unavailable);
        steps.extend(outdated.take(more).map(|pod| Step::Delete { pod: pod.clone(), scaled_down: false }));
        return steps;
    }
    for (_, slot) in view.slots.range(from..).rev() {
        let Some(pod) = slot else { return steps };
        if view.is_outdated(pod) {
            steps.push(Step::Delete { pod: pod.clone(), scaled_down: false });
            return steps;
        }
        if view.is_unavailable(pod) {
            return steps;
        }
    }
    steps
}

/// An update that has reached all pods makes its revision the current one.
pub(super) fn complete_update(set: &StatefulSet, status: &mut StatefulSetStatus) {
    let spec = set.spec.as_ref();
    let rolls = spec.and_then(|spec| spec.update_strategy.as_ref()?.type_.as_deref()) != Some("OnDelete");
    let wanted = spec.and_then(|spec| spec.replicas).unwrap_or(1);
    if rolls
        && status.updated_replicas.unwrap_or(0) == wanted
        && status.ready_replicas.unwrap_or(0) == wanted
        && status.replicas == wanted
    {
        status.current_replicas = status.updated_replicas;
        status.current_revision.clone_from(&status.update_revision);
    }
    for count in [&mut status.current_replicas, &mut status.updated_replicas] {
        *count = count.filter(|count| *count != 0);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(replicas: i32) -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "n"},
            "spec": {"replicas": replicas, "selector": {}, "template": {}, "serviceName": "s",
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}},
        }))
        .unwrap()
    }

    fn pod(ordinal: i32, revision: &str, ready: bool) -> Arc<SlimPod> {
        let pod = json!({
            "metadata": {"name": format!("s-{ordinal}"), "labels": {REVISION_LABEL: revision}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        Arc::new(SlimPod::of(serde_json::from_value(pod).unwrap()))
    }

    fn check(replicas: i32, pods: &[Arc<SlimPod>]) -> Vec<String> {
        check_set(&set(replicas), pods, false)
    }

    fn check_set(set: &StatefulSet, pods: &[Arc<SlimPod>], several: bool) -> Vec<String> {
        let view = View { several, ..View::new(set, pods, "old", "new", Timestamp::UNIX_EPOCH) };
        plan(&view, &StatefulSetStatus::default())
            .into_iter()
            .map(|step| match step {
                Step::Create { ordinal, .. } => format!("create {ordinal}"),
                Step::EnsureClaims { ordinal } => format!("claims {ordinal}"),
                Step::Delete { pod, .. } => format!("delete {}", owners::name(&pod.metadata)),
            })
            .collect()
    }

    #[test]
    fn pods_come_in_order_and_go_in_reverse() {
        assert_eq!(check(3, &[]), ["create 0"]);
        assert_eq!(check(3, &[pod(0, "new", false)]), Vec::<String>::new());
        assert_eq!(check(3, &[pod(0, "new", true)]), ["create 1"]);
        assert_eq!(check(1, &[pod(0, "new", true), pod(1, "new", true), pod(2, "new", true)]), ["delete s-2"]);
    }

    #[test]
    fn an_update_goes_from_the_highest_number_down_and_waits_for_health() {
        assert_eq!(check(2, &[pod(0, "old", true), pod(1, "old", true)]), ["delete s-1"]);
        assert_eq!(check(2, &[pod(0, "old", true), pod(1, "new", true)]), ["delete s-0"]);
        assert_eq!(check(2, &[pod(0, "new", true), pod(1, "new", true)]), Vec::<String>::new());
    }
    #[test]
    fn several_pods_may_be_unavailable_where_the_gate_is_open() {
        let mut set = set(4);
        let rolling = json!({"partition": 1, "maxUnavailable": "50%"});
        set.spec.as_mut().unwrap().update_strategy =
            Some(serde_json::from_value(json!({"type": "RollingUpdate", "rollingUpdate": rolling})).unwrap());
        let pods = |revisions: [&str; 4]| -> Vec<Arc<SlimPod>> {
            revisions.iter().enumerate().map(|(at, revision)| pod(at as i32, revision, true)).collect()
        };
        assert_eq!(check_set(&set, &pods(["old"; 4]), true), ["delete s-3", "delete s-2"]);
        assert_eq!(check_set(&set, &pods(["old", "old", "new", "new"]), true), ["delete s-1"]);
        assert_eq!(check_set(&set, &pods(["old", "new", "new", "new"]), true), Vec::<String>::new());
        set.spec.as_mut().unwrap().pod_management_policy = Some("Parallel".into());
        let mut one_out = pods(["old"; 4]);
        one_out[0] = pod(0, "old", false);
        assert_eq!(check_set(&set, &one_out, true), ["delete s-3"]);
    }

    #[test]
    fn an_update_waits_until_a_pod_has_been_ready_long_enough() {
        let mut set = set(2);
        let spec = set.spec.as_mut().unwrap();
        (spec.pod_management_policy, spec.min_ready_seconds) = (Some("Parallel".into()), Some(10));
        assert_eq!(check_set(&set, &[pod(0, "old", true), pod(1, "new", true)], false), Vec::<String>::new());
    }
}
