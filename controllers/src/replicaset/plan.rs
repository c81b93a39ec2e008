//! How many pods to make, or which to give up.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::common::pods::{self, Ranked, deletion_order};
use crate::common::slim::SlimPod;

/// The most pods made or deleted in one go.
const BURST_MAX: usize = 500;

pub(super) enum Action {
    None,
    Create(usize),
    Delete(Vec<Arc<SlimPod>>),
}

/// `related` says how many related pods each node has; it is asked only if pods are to be chosen.
pub(super) fn plan(
    wanted: i32,
    active: &[Arc<SlimPod>],
    related: impl FnOnce() -> HashMap<String, usize>,
    now: Timestamp,
) -> Action {
    let wanted = wanted.max(0) as usize;
    if active.len() < wanted {
        return Action::Create((wanted - active.len()).min(BURST_MAX));
    }
    let surplus = (active.len() - wanted).min(BURST_MAX);
    if surplus == 0 {
        return Action::None;
    }
    if surplus == active.len() {
        return Action::Delete(active.to_vec());
    }
    let by_node = related();
    let mut ranked: Vec<Ranked> = active
        .iter()
        .map(|pod| Ranked { pod: pod.clone(), doubled: by_node.get(pods::node_name(pod)).copied().unwrap_or(0) })
        .collect();
    ranked.sort_by(|left, right| deletion_order(left, right, now));
    Action::Delete(ranked.into_iter().take(surplus).map(|ranked| ranked.pod).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_pods_is_approached_in_bounded_bursts() {
        let now = Timestamp::UNIX_EPOCH;
        assert!(matches!(plan(700, &[], HashMap::new, now), Action::Create(500)));
        let pod = Arc::new(SlimPod::of(Default::default()));
        assert!(
            matches!(plan(0, std::slice::from_ref(&pod), HashMap::new, now), Action::Delete(pods) if pods.len() == 1)
        );
        assert!(matches!(plan(1, &[pod], HashMap::new, now), Action::None));
    }
}
