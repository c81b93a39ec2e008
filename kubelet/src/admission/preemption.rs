//! Room for critical pods: others are ended where a critical pod would not fit beside them (upstream: `kubelet/preemption`).

use super::Rejection;
use crate::kubelet::{Kubelet, PodHandle};
use crate::pod;
use crate::resources::{self, QosClass, ResourceList};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub const REASON: &str = "Preempting";
const MESSAGE: &str = "Preempted in order to admit critical pod";

/// What is still needed, by resource: thousandths of CPUs, whole units of anything else.
type Needs = BTreeMap<String, i64>;

/// Ends as few and as unimportant pods as will do.
pub(super) fn make_room(kubelet: &Kubelet, pod: &Pod) -> Result<(), Rejection> {
    let alive: Vec<Arc<PodHandle>> = kubelet
        .handles()
        .into_iter()
        .filter(|h| !h.rejected.load(Ordering::Acquire) && !h.finished.load(Ordering::Acquire))
        .collect();
    let pods: Vec<Arc<Pod>> = alive.iter().map(|h| h.allocated_pod()).collect();
    let others: Vec<&Pod> = pods.iter().map(|p| p.as_ref()).collect();
    let needs = shortage(&kubelet.allocatable(), &others, pod);
    let victims = victims(pod, &others, needs).map_err(|needs| {
        let list: String = needs.iter().map(|(name, amount)| format!("(res: {name}, q: {amount}), ")).collect();
        Rejection::new(
            "UnexpectedAdmissionError",
            format!(
                "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: [{list}]"
            ),
        )
    })?;
    for index in victims {
        kubelet.events.pod(&pods[index], None, "Warning", REASON, MESSAGE);
        alive[index].terminate(None, Some((REASON.into(), MESSAGE.into())));
    }
    Ok(())
}

fn amount(name: &str, pod: &Pod) -> i64 {
    if name == "pods" {
        return 1;
    }
    resources::pod_requests(pod)
        .get(name)
        .map_or(0, |q| if name == "cpu" { resources::milli_value(q) } else { resources::value(q) })
}

fn shortage(allocatable: &ResourceList, others: &[&Pod], pod: &Pod) -> Needs {
    let mut needs = Needs::new();
    for (name, capacity) in allocatable {
        let capacity = if name == "cpu" { resources::milli_value(capacity) } else { resources::value(capacity) };
        let wanted = amount(name, pod);
        let used: i64 = others.iter().map(|other| amount(name, other)).sum();
        if wanted > 0 && used + wanted > capacity {
            needs.insert(name.clone(), used + wanted - capacity);
        }
    }
    needs
}

fn without(needs: &Needs, pods: &[(usize, &Pod)]) -> Needs {
    let left = |(name, needed): (&String, &i64)| {
        let left = needed - pods.iter().map(|(_, pod)| amount(name, pod)).sum::<i64>();
        (left > 0).then(|| (name.clone(), left))
    };
    needs.iter().filter_map(left).collect()
}

/// Indexes of the pods to end, the least important classes first, or what all of them could not give.
fn victims(pod: &Pod, others: &[&Pod], needs: Needs) -> Result<Vec<usize>, Needs> {
    let of_class = |class: QosClass| -> Vec<(usize, &Pod)> {
        let fitting = |(_, other): &(usize, &Pod)| !pod::is_critical(other) && resources::qos_class(other) == class;
        others.iter().copied().enumerate().filter(fitting).collect()
    };
    debug_assert!(pod::is_critical(pod));
    let classes = [QosClass::BestEffort, QosClass::Burstable, QosClass::Guaranteed].map(of_class);
    let all: Vec<(usize, &Pod)> = classes.iter().flatten().copied().collect();
    let missing = without(&needs, &all);
    if !missing.is_empty() {
        return Err(missing);
    }
    let [best_effort, burstable, guaranteed] = classes;
    let lesser: Vec<_> = best_effort.iter().chain(&burstable).copied().collect();
    let mut chosen = nearest(guaranteed, without(&needs, &lesser));
    let certain: Vec<_> = best_effort.iter().chain(&chosen).copied().collect();
    chosen.extend(nearest(burstable, without(&needs, &certain)));
    let rest = without(&needs, &chosen);
    chosen.extend(nearest(best_effort, rest));
    Ok(chosen.into_iter().map(|(index, _)| index).collect())
}

/// One after the other the pod that comes closest to giving what is needed, of equals the one that asks for less.
fn nearest(mut pods: Vec<(usize, &Pod)>, mut needs: Needs) -> Vec<(usize, &Pod)> {
    let distance = |needs: &Needs, pod: &Pod| -> f64 {
        let share =
            |(name, needed): (&String, &i64)| ((needed - amount(name, pod)).max(0) as f64 / *needed as f64).powi(2);
        needs.iter().map(share).sum()
    };
    let mut chosen = Vec::new();
    while !needs.is_empty() && !pods.is_empty() {
        let best = (0..pods.len()).min_by(|a, b| {
            let (a, b) = (pods[*a].1, pods[*b].1);
            let sizes = |pod: &Pod| (amount("memory", pod), amount("cpu", pod));
            distance(&needs, a).total_cmp(&distance(&needs, b)).then_with(|| sizes(a).cmp(&sizes(b)))
        });
        let pick = pods.swap_remove(best.unwrap_or(0));
        needs = without(&needs, &[pick]);
        chosen.push(pick);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(priority: i64, cpu: &str, class: &str) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "status": {"qosClass": class},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}))
        .unwrap()
    }

    #[test]
    fn the_pods_that_fit_best_go_and_critical_ones_stay() {
        let critical = pod(2_000_000_000, "1", "Burstable");
        let others = [
            pod(2_000_000_000, "4", "Burstable"),
            pod(0, "500m", "Burstable"),
            pod(0, "2", "Burstable"),
            pod(0, "1", "Burstable"),
            pod(0, "1", "Guaranteed"),
        ];
        let others: Vec<&Pod> = others.iter().collect();
        let needs = |cpu: i64| Needs::from([("cpu".to_string(), cpu)]);
        assert_eq!(victims(&critical, &others, needs(400)).unwrap(), [1]);
        assert_eq!(victims(&critical, &others, needs(1000)).unwrap(), [3]);
        assert_eq!(victims(&critical, &others, needs(9000)).unwrap_err(), needs(4500));
    }
}
