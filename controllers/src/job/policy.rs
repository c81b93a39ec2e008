//! Pod failure policies: what the failure of a pod means for its job.

use k8s_openapi::api::batch::v1::PodFailurePolicy;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::common::owners;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Counts against the back-off limit, as without a policy.
    Count,
    Ignore,
    FailIndex,
    /// Fails the job, for this reason.
    FailJob(String),
}

/// The first rule that matches decides.
pub(super) fn action(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Action {
    for (index, rule) in policy.into_iter().flat_map(|policy| &policy.rules).enumerate() {
        let subject = if let Some(codes) = &rule.on_exit_codes {
            let matches = |status: &&ContainerStatus| {
                let state = status.state.as_ref().and_then(|state| state.terminated.as_ref());
                codes.container_name.as_ref().is_none_or(|name| *name == status.name)
                    && state.is_some_and(|state| {
                        state.exit_code != 0 && (codes.operator == "In") == codes.values.contains(&state.exit_code)
                    })
            };
            let status = pod.status.as_ref();
            let own = status.into_iter().flat_map(|status| status.container_statuses.iter().flatten());
            let init = status.into_iter().flat_map(|status| status.init_container_statuses.iter().flatten());
            own.chain(init).find(matches).map(|status| {
                let code =
                    status.state.as_ref().and_then(|state| state.terminated.as_ref()).map_or(0, |end| end.exit_code);
                format!("Container {} for pod {} failed with exit code {code}", status.name, full_name(pod))
            })
        } else {
            let patterns = rule.on_pod_conditions.iter().flatten();
            let conditions = || pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            patterns
                .flat_map(|pattern| {
                    conditions().filter(move |found| {
                        found.type_ == pattern.type_ && found.status == pattern.status.as_deref().unwrap_or("True")
                    })
                })
                .next()
                .map(|found| format!("Pod {} has condition {}", full_name(pod), found.type_))
        };
        let Some(subject) = subject else { continue };
        return match rule.action.as_str() {
            "Ignore" => Action::Ignore,
            "FailIndex" => Action::FailIndex,
            "FailJob" => Action::FailJob(format!("{subject} matching FailJob rule at index {index}")),
            _ => Action::Count,
        };
    }
    Action::Count
}

fn full_name(pod: &Pod) -> String {
    format!("{}/{}", owners::namespace(&pod.metadata), owners::name(&pod.metadata))
}
