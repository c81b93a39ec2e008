//! What is to happen with a job, from its spec, its status and its pods. Pure.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};

use super::indexes::{Indexes, all_failures_of, failures_of, index_of};
use super::policy::{self, Action};
use super::{backoff, conditions, deadline_of, has_tracking};
use crate::common::owners;
use crate::common::pods::{self, Ranked, deletion_order};
use crate::common::slim::SlimPod;

/// How a pod counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Running,
    Succeeded,
    Failed,
    /// Failed, but by the policy it does not count.
    Ignored,
}

pub(super) struct View<'a> {
    spec: JobSpec,
    status: &'a JobStatus,
    pub active: Vec<Arc<SlimPod>>,
    /// Pods about to go that have not finished.
    pub terminating: usize,
    /// Pods that have the finalizer, and so are not counted yet.
    pub tracked: Vec<Arc<SlimPod>>,
    uncounted: HashSet<&'a str>,
    pub succeeded_indexes: Indexes,
    pub failed_indexes: Indexes,
    pub backoff_limit_per_index: Option<i32>,
    /// The last failed pod of each index that is to be tried again. It is not counted, and keeps its finalizer, until its successor
    /// remembers how often the index has failed.
    pub to_replace: BTreeMap<u32, Arc<SlimPod>>,
    /// How long no pods may be made, because others failed.
    pub backoff: Option<Duration>,
    succeeded: i32,
    failed: i32,
    /// A pod failed that is not in the status yet.
    newly_failed: bool,
}

impl<'a> View<'a> {
    pub(super) fn new(job: &Job, status: &'a JobStatus, pods: &[Arc<SlimPod>], released: &HashSet<String>) -> Self {
        let spec = job.spec.clone().unwrap_or_default();
        let uncounted = status.uncounted_terminated_pods.as_ref();
        let listed =
            |uids: Option<&'a Vec<String>>| uids.into_iter().flatten().map(String::as_str).collect::<HashSet<_>>();
        let listed_succeeded = listed(uncounted.and_then(|uncounted| uncounted.succeeded.as_ref()));
        let listed_failed = listed(uncounted.and_then(|uncounted| uncounted.failed.as_ref()));
        let end = spec.completions.unwrap_or(0).max(0) as u32;
        let tracked: Vec<Arc<SlimPod>> = pods
            .iter()
            .filter(|pod| has_tracking(pod) && !released.contains(owners::uid(&pod.metadata)))
            .cloned()
            .collect();
        let mut view = Self {
            backoff_limit_per_index: spec.backoff_limit_per_index,
            active: pods.iter().filter(|pod| pods::is_active(pod)).cloned().collect(),
            terminating: pods.iter().filter(|pod| pods::is_terminating(pod)).count(),
            succeeded_indexes: Indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), end),
            failed_indexes: Indexes::parse(status.failed_indexes.as_deref().unwrap_or_default(), end),
            succeeded: status.succeeded.unwrap_or(0) + listed_succeeded.len() as i32,
            failed: status.failed.unwrap_or(0) + listed_failed.len() as i32,
            uncounted: listed_succeeded.union(&listed_failed).copied().collect(),
            tracked,
            to_replace: BTreeMap::new(),
            backoff: None,
            newly_failed: false,
            spec,
            status,
        };
        let indexed = view.is_indexed();
        let (mut succeeded, mut failed) = (0, 0);
        let mut done = BTreeSet::new();
        let mut lost = BTreeSet::new();
        for pod in &view.tracked {
            let new = view.is_new(pod);
            match view.verdict(pod) {
                Verdict::Succeeded => {
                    succeeded += i32::from(new);
                    done.extend(index_of(pod).filter(|index| *index < end));
                }
                Verdict::Failed => {
                    failed += i32::from(new);
                    if let Some(index) = index_of(pod).filter(|index| *index < end) {
                        let exhausted =
                            view.backoff_limit_per_index.is_some_and(|limit| failures_of(pod) as i32 >= limit);
                        let by_policy = policy::action(view.spec.pod_failure_policy.as_ref(), pod) == Action::FailIndex;
                        if exhausted || by_policy {
                            lost.insert(index);
                        }
                    }
                }
                Verdict::Running | Verdict::Ignored => {}
            }
        }
        view.newly_failed = failed > 0;
        view.failed += failed;
        if indexed {
            view.succeeded_indexes.0.extend(done);
            if view.backoff_limit_per_index.is_some() {
                lost.retain(|index| !view.succeeded_indexes.contains(*index));
                view.failed_indexes.0.extend(lost);
                view.to_replace = view.find_to_replace(end);
            }
            view.succeeded = view.succeeded_indexes.len() as i32;
        } else {
            view.succeeded += succeeded;
        }
        view
    }

    fn find_to_replace(&self, end: u32) -> BTreeMap<u32, Arc<SlimPod>> {
        let running: HashSet<u32> = self.active.iter().filter_map(|pod| index_of(pod)).collect();
        let rank = |pod: &SlimPod| (all_failures_of(pod), backoff::finished_at(pod));
        let mut found: BTreeMap<u32, Arc<SlimPod>> = BTreeMap::new();
        for pod in self.tracked.iter().filter(|pod| matches!(self.verdict(pod), Verdict::Failed | Verdict::Ignored)) {
            let Some(index) = index_of(pod).filter(|index| *index < end) else { continue };
            let over = running.contains(&index)
                || self.succeeded_indexes.contains(index)
                || self.failed_indexes.contains(index);
            if !over && found.get(&index).is_none_or(|known| rank(pod) >= rank(known)) {
                found.insert(index, pod.clone());
            }
        }
        found
    }

    /// How long an index that failed waits before it is tried again.
    fn index_backoff(&self, index: u32, now: Timestamp) -> Option<Duration> {
        let failed = self.to_replace.get(&index)?;
        backoff::remaining(all_failures_of(failed) + 1, backoff::finished_at(failed), now)
    }

    /// When the next index that waits may be tried again.
    pub(super) fn next_index_after(&self, now: Timestamp) -> Option<Duration> {
        self.to_replace.keys().filter_map(|index| self.index_backoff(*index, now)).min()
    }

    pub(super) fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    /// Whether a pod is not in the status yet.
    pub(super) fn is_new(&self, pod: &SlimPod) -> bool {
        has_tracking(pod) && !self.uncounted.contains(owners::uid(&pod.metadata))
    }

    /// Only pods that ended are replaced, not those about to.
    fn replaces_only_failed(&self) -> bool {
        self.spec.pod_replacement_policy.as_deref() == Some("Failed")
    }

    pub(super) fn verdict(&self, pod: &SlimPod) -> Verdict {
        let failed = match pods::phase(pod) {
            "Succeeded" => return Verdict::Succeeded,
            "Failed" => true,
            _ => owners::is_deleting(&pod.metadata) && !self.replaces_only_failed(),
        };
        if !failed {
            return Verdict::Running;
        }
        match policy::action(self.spec.pod_failure_policy.as_ref(), pod) {
            Action::Ignore => Verdict::Ignored,
            _ => Verdict::Failed,
        }
    }

    /// The first indexes that are neither done nor lost, and that no pod works on.
    /// Of those, the ones that need not wait any longer.
    pub(super) fn pending_indexes(&self, count: usize, now: Timestamp) -> Vec<u32> {
        let end = self.spec.completions.unwrap_or(0).max(0) as u32;
        let busy: HashSet<u32> = self
            .active
            .iter()
            .chain(self.tracked.iter().filter(|pod| self.replaces_only_failed() && pods::is_terminating(pod)))
            .filter_map(|pod| index_of(pod))
            .collect();
        (0..end)
            .filter(|index| {
                !busy.contains(index)
                    && !self.succeeded_indexes.contains(*index)
                    && !self.failed_indexes.contains(*index)
            })
            .take(count)
            .filter(|index| self.index_backoff(*index, now).is_none())
            .collect()
    }

    pub(super) fn until_deadline(&self, now: Timestamp) -> Option<Duration> {
        deadline_of(self.status.start_time.as_ref(), self.spec.active_deadline_seconds, now)
            .filter(|left| !left.is_zero())
    }

    /// Why the job is to fail, if it is.
    fn failure(&self, now: Timestamp) -> Option<(String, String)> {
        if let Some(target) = conditions::find(self.status, "FailureTarget") {
            return Some((target.reason.clone().unwrap_or_default(), target.message.clone().unwrap_or_default()));
        }
        let because = |reason: &str, message: &str| Some((reason.to_owned(), message.to_owned()));
        for pod in self.tracked.iter().filter(|pod| pods::phase(pod) == "Failed") {
            if let Action::FailJob(message) = policy::action(self.spec.pod_failure_policy.as_ref(), pod) {
                return because("PodFailurePolicy", &message);
            }
        }
        let limit = self.spec.backoff_limit.unwrap_or(6);
        if (self.newly_failed && self.failed > limit) || self.restarted_too_often(limit) {
            return because("BackoffLimitExceeded", "Job has reached the specified backoff limit");
        }
        if deadline_of(self.status.start_time.as_ref(), self.spec.active_deadline_seconds, now) == Some(Duration::ZERO)
        {
            return because("DeadlineExceeded", "Job was active longer than specified deadline");
        }
        if self.is_indexed() && self.backoff_limit_per_index.is_some() {
            let lost = self.failed_indexes.len() as i32;
            if self.spec.max_failed_indexes.is_some_and(|most| lost > most) {
                let message = "Job has exceeded the specified maximal number of failed indexes";
                return because("MaxFailedIndexesExceeded", message);
            }
            if lost > 0 && lost + self.succeeded_indexes.len() as i32 >= self.spec.completions.unwrap_or(0) {
                return because("FailedIndexes", "Job has failed indexes");
            }
        }
        None
    }

    /// Pods that restart their containers themselves count their restarts.
    fn restarted_too_often(&self, limit: i32) -> bool {
        let template = self.spec.template.spec.as_ref();
        if template.and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
            return false;
        }
        let restarts: i32 = self
            .active
            .iter()
            .filter_map(|pod| pod.status.as_ref())
            .flat_map(|status| status.container_statuses.iter().chain(&status.init_container_statuses).flatten())
            .map(|status| status.restart_count)
            .sum();
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }

    fn success(&self) -> Option<(String, String)> {
        if let Some(target) = conditions::find(self.status, "SuccessCriteriaMet") {
            return Some((target.reason.clone().unwrap_or_default(), target.message.clone().unwrap_or_default()));
        }
        if self.is_indexed() {
            let end = self.spec.completions.unwrap_or(0).max(0) as u32;
            for (index, rule) in self.spec.success_policy.iter().flat_map(|policy| &policy.rules).enumerate() {
                let considered = match &rule.succeeded_indexes {
                    Some(text) => Indexes::parse(text, end).0,
                    None => (0..end).collect(),
                };
                let succeeded = considered.iter().filter(|index| self.succeeded_indexes.contains(**index)).count();
                if succeeded >= rule.succeeded_count.map_or(considered.len(), |count| count.max(0) as usize) {
                    return Some(("SuccessPolicy".to_owned(), format!("Matched rules at index {index}")));
                }
            }
        }
        let complete = match self.spec.completions {
            None => self.succeeded > 0 && self.active.is_empty(),
            Some(completions) => self.succeeded >= completions,
        };
        let message = "Reached expected number of succeeded pods";
        complete.then(|| ("CompletionsReached".to_owned(), message.to_owned()))
    }
}

pub(super) enum Outcome {
    /// Where the job is to end, the condition says why.
    Delete {
        pods: Vec<Arc<SlimPod>>,
        condition: Option<JobCondition>,
    },
    Create {
        count: usize,
    },
    Wait {
        condition: Option<JobCondition>,
    },
}

impl Outcome {
    pub(super) fn take_condition(&mut self) -> Option<JobCondition> {
        match self {
            Self::Delete { condition, .. } | Self::Wait { condition } => condition.take(),
            Self::Create { .. } => None,
        }
    }

    pub(super) fn deleted(&self) -> usize {
        match self {
            Self::Delete { pods, .. } => pods.len(),
            _ => 0,
        }
    }
}

pub(super) fn plan(view: &View, now: Timestamp) -> Outcome {
    let ending = match (view.failure(now), view.success()) {
        // What has been declared first stays.
        (_, Some((reason, message))) if conditions::is_true(view.status, "SuccessCriteriaMet") => {
            Some(conditions::new("SuccessCriteriaMet", "True", &reason, &message))
        }
        (Some((reason, message)), _) => Some(conditions::new("FailureTarget", "True", &reason, &message)),
        (None, Some((reason, message))) => Some(conditions::new("SuccessCriteriaMet", "True", &reason, &message)),
        (None, None) => None,
    };
    if let Some(condition) = ending {
        let condition = Some(condition);
        if view.active.is_empty() {
            return Outcome::Wait { condition };
        }
        return Outcome::Delete { pods: view.active.clone(), condition };
    }
    if view.spec.suspend == Some(true) {
        return if view.active.is_empty() {
            Outcome::Wait { condition: None }
        } else {
            Outcome::Delete { pods: view.active.clone(), condition: None }
        };
    }
    let parallelism = view.spec.parallelism.unwrap_or(1).max(0) as usize;
    let active = view.active.len();
    let wanted = match view.spec.completions {
        None if view.succeeded > 0 => active.min(parallelism),
        None => parallelism,
        Some(completions) => {
            let lost = view.failed_indexes.len() as i32;
            ((completions - view.succeeded - lost).max(0) as usize).min(parallelism)
        }
    };
    // Where both are called for, pods go first and come at the next look.
    let pods = surplus(view, active.saturating_sub(wanted), now);
    if !pods.is_empty() {
        return Outcome::Delete { pods, condition: None };
    }
    let occupied = active + if view.replaces_only_failed() { view.terminating } else { 0 };
    if occupied < wanted && view.backoff.is_none() {
        return Outcome::Create { count: wanted - occupied };
    }
    Outcome::Wait { condition: None }
}

/// Running pods that are too many: those without an index of the job, all but one of each index, and then as many as it takes.
fn surplus(view: &View, at_least: usize, now: Timestamp) -> Vec<Arc<SlimPod>> {
    let ranked = |pods: &[Arc<SlimPod>]| {
        let mut ranked: Vec<Ranked> = pods.iter().map(|pod| Ranked { pod: pod.clone(), doubled: 0 }).collect();
        ranked.sort_by(|left, right| deletion_order(left, right, now));
        ranked.into_iter().map(|ranked| ranked.pod)
    };
    let (mut gone, mut left) = (Vec::new(), Vec::new());
    if view.is_indexed() {
        let end = view.spec.completions.unwrap_or(0).max(0) as u32;
        let mut by_index: BTreeMap<Option<u32>, Vec<Arc<SlimPod>>> = BTreeMap::new();
        for pod in &view.active {
            by_index.entry(index_of(pod).filter(|index| *index < end)).or_default().push(pod.clone());
        }
        for (index, pods) in by_index {
            let mut pods: Vec<_> = ranked(&pods).collect();
            left.extend(index.and_then(|_| pods.pop()));
            gone.extend(pods);
        }
    } else {
        left.clone_from(&view.active);
    }
    let more = at_least.saturating_sub(gone.len());
    gone.extend(ranked(&left).take(more));
    gone
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;

    fn check(spec: Value, status: Value, pods: &[(&str, &str)]) -> String {
        let mut full = json!({"template": {"spec": {"containers": [], "restartPolicy": "Never"}}});
        full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let job: Job = serde_json::from_value(json!({"metadata": {"name": "j"}, "spec": full})).unwrap();
        let status: JobStatus = serde_json::from_value(status).unwrap();
        let pods: Vec<_> = pods
            .iter()
            .map(|(uid, phase)| {
                let pod = json!({
                    "metadata": {"uid": uid, "finalizers": [super::super::TRACKING],
                        "annotations": {super::super::INDEX: uid}},
                    "status": {"phase": phase},
                });
                Arc::new(SlimPod::of(serde_json::from_value(pod).unwrap()))
            })
            .collect();
        let view = View::new(&job, &status, &pods, &HashSet::new());
        let mut outcome = plan(&view, Timestamp::UNIX_EPOCH);
        let condition = outcome.take_condition().map(|found| found.reason.unwrap_or_default()).unwrap_or_default();
        match outcome {
            Outcome::Create { count } => format!("create {count}"),
            Outcome::Delete { pods, .. } => format!("delete {} {condition}", pods.len()),
            Outcome::Wait { .. } => format!("wait {condition}"),
        }
    }

    #[test]
    fn pods_are_made_up_to_what_is_left_and_at_most_in_parallel() {
        let spec = json!({"completions": 5, "parallelism": 2, "backoffLimit": 1});
        assert_eq!(check(spec.clone(), json!({}), &[]), "create 2");
        assert_eq!(check(spec.clone(), json!({"succeeded": 4}), &[]), "create 1");
        assert_eq!(
            check(spec.clone(), json!({"succeeded": 3}), &[("0", "Succeeded"), ("1", "Succeeded")]),
            "wait CompletionsReached"
        );
        assert_eq!(
            check(spec.clone(), json!({"failed": 1}), &[("0", "Failed"), ("1", "Running")]),
            "delete 1 BackoffLimitExceeded"
        );
        assert_eq!(check(spec, json!({}), &[("0", "Running"), ("1", "Running"), ("2", "Running")]), "delete 1 ");
    }

    #[test]
    fn an_index_counts_once() {
        let spec = json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed"});
        assert_eq!(check(spec.clone(), json!({}), &[("0", "Running"), ("2", "Running")]), "delete 1 ");
        assert_eq!(
            check(spec.clone(), json!({"completedIndexes": "0", "succeeded": 1}), &[("0", "Succeeded")]),
            "create 1"
        );
        assert_eq!(
            check(spec, json!({"completedIndexes": "0", "succeeded": 1}), &[("1", "Succeeded")]),
            "wait CompletionsReached"
        );
    }

    #[test]
    fn an_index_that_failed_is_tried_again_after_its_own_wait_and_remembers() {
        let view = |annotations: Value, now: i64| {
            let spec = json!({
                "template": {"spec": {"containers": [], "restartPolicy": "Never"}}, "completionMode": "Indexed",
                "completions": 2, "parallelism": 2, "backoffLimitPerIndex": 1,
            });
            let job: Job = serde_json::from_value(json!({"metadata": {"name": "j"}, "spec": spec})).unwrap();
            let end = json!({"terminated": {"exitCode": 1, "finishedAt": "1970-01-01T00:01:40Z"}});
            let pod = json!({
                "metadata": {"uid": "a", "finalizers": [super::super::TRACKING], "annotations": annotations},
                "status": {"phase": "Failed", "containerStatuses": [
                    {"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": end}]},
            });
            let pods = [Arc::new(SlimPod::of(serde_json::from_value(pod).unwrap()))];
            let now = Timestamp::from_second(now).unwrap();
            let status = JobStatus::default();
            let view = View::new(&job, &status, &pods, &HashSet::new());
            let next = super::super::indexes::pod_of(&Pod::default(), "j", 0, &view);
            (view.pending_indexes(2, now), view.next_index_after(now), failures_of(&next), view.failed_indexes.len())
        };
        let first = json!({super::super::INDEX: "0", "batch.kubernetes.io/job-index-failure-count": "0"});
        assert_eq!(view(first.clone(), 105), (vec![1], Some(Duration::from_secs(5)), 1, 0));
        assert_eq!(view(first, 110), (vec![0, 1], None, 1, 0));
        let second = json!({super::super::INDEX: "0", "batch.kubernetes.io/job-index-failure-count": "1"});
        assert_eq!(view(second, 105), (vec![1], None, 0, 1));
    }
}
