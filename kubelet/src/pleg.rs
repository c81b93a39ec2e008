//! Notices what happens to containers without the kubelet's doing (upstream: `kubelet/pleg`): compares what the runtime lists with what each
//! worker saw last, and wakes the workers of pods that differ.

use crate::cri::v1;
use crate::kubelet::Kubelet;
use crate::labels;
use futures::StreamExt;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Upstream relists this often.
const PERIOD: Duration = Duration::from_secs(1);
/// While any container is young, or a pod is ending, somebody is likely to wait for its end.
const PERIOD_BUSY: Duration = Duration::from_millis(250);
const YOUNG_NANOS: i64 = 10_000_000_000;
const EVENTS_RETRY: Duration = Duration::from_secs(10);

type Seen = HashMap<String, BTreeMap<String, i32>>;

pub async fn run(kubelet: Arc<Kubelet>) {
    let work = async {
        tokio::join!(relist_forever(&kubelet), follow_events(&kubelet));
    };
    tokio::select! {
        () = work => {}
        () = kubelet.shutdown.cancelled() => {}
    }
}

async fn relist_forever(kubelet: &Arc<Kubelet>) {
    let mut orphans = HashSet::new();
    loop {
        let mut period = PERIOD;
        if let Ok((seen, busy)) = relist(kubelet).await {
            if busy {
                period = PERIOD_BUSY;
            }
            wake_changed(kubelet, &seen);
            end_orphans(kubelet, &seen, &mut orphans).await;
        }
        tokio::time::sleep(period).await;
    }
}

async fn relist(kubelet: &Kubelet) -> crate::cri::Result<(Seen, bool)> {
    let (sandboxes, containers) =
        tokio::try_join!(kubelet.runtime.list_pod_sandboxes(None), kubelet.runtime.list_containers(None))?;
    let mut seen = Seen::new();
    let now = jiff::Timestamp::now().as_nanosecond() as i64;
    let mut busy = false;
    for sandbox in sandboxes {
        if let Some(uid) = sandbox.labels.get(labels::POD_UID) {
            seen.entry(uid.clone()).or_default().insert(sandbox.id, sandbox.state);
        }
    }
    for container in containers {
        busy |= container.state == v1::ContainerState::Running as i32 && now - container.created_at < YOUNG_NANOS;
        if let Some(uid) = container.labels.get(labels::POD_UID) {
            seen.entry(uid.clone()).or_default().insert(container.id, container.state);
        }
    }
    Ok((seen, busy))
}

fn wake_changed(kubelet: &Kubelet, seen: &Seen) {
    let none = BTreeMap::new();
    for handle in kubelet.handles() {
        let now = seen.get(&handle.uid).unwrap_or(&none);
        if worth_a_sync(&handle.seen.lock(), now) {
            handle.runtime_changed();
        }
    }
}

/// Whether a pod's worker has to look at what is different now: anything but the removal of what had ended.
pub fn worth_a_sync(before: &BTreeMap<String, i32>, now: &BTreeMap<String, i32>) -> bool {
    let ended = v1::ContainerState::Exited as i32;
    now.iter().any(|(id, state)| before.get(id) != Some(state))
        || before.iter().any(|(id, state)| *state != ended && !now.contains_key(id))
}

/// Pods that the API does not know (any more): deleted while the kubelet was away. Seen twice, they are stopped and removed.
async fn end_orphans(kubelet: &Arc<Kubelet>, seen: &Seen, suspects: &mut HashSet<String>) {
    let unknown: HashSet<String> = seen.keys().filter(|uid| kubelet.handle(uid).is_none()).cloned().collect();
    for uid in unknown.intersection(suspects) {
        for id in seen[uid].keys() {
            // An id is either a container's or a sandbox's; asking for the wrong one does nothing.
            if let Ok(status) = kubelet.runtime.container_status(id).await {
                let grace = labels::container_info(&status.annotations).grace_period.unwrap_or(Duration::from_secs(30));
                let (kubelet, id) = (kubelet.clone(), id.clone());
                if status.state == v1::ContainerState::Running as i32 {
                    let _ = kubelet.runtime.stop_container(&id, grace.min(Duration::from_secs(30))).await;
                }
                let _ = kubelet.runtime.remove_container(&id).await;
            }
        }
        for id in seen[uid].keys() {
            if kubelet.runtime.pod_sandbox_status(id).await.is_ok() {
                let _ = kubelet.runtime.stop_pod_sandbox(id).await;
                let _ = kubelet.runtime.remove_pod_sandbox(id).await;
            }
        }
    }
    *suspects = unknown;
}

/// Runtimes that tell of events make relisting the second line.
async fn follow_events(kubelet: &Kubelet) {
    loop {
        match kubelet.runtime.container_events().await {
            Ok(mut events) => {
                while let Some(Ok(event)) = events.next().await {
                    let labels = event.pod_sandbox_status.as_ref().map(|s| &s.labels);
                    let handle = labels.and_then(|l| l.get(labels::POD_UID)).and_then(|uid| kubelet.handle(uid));
                    if let Some(handle) = handle {
                        handle.runtime_changed();
                    }
                }
            }
            Err(e) if e.is_unimplemented() => return,
            Err(_) => {}
        }
        tokio::time::sleep(EVENTS_RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_removal_of_ended_containers_wakes_nobody() {
        let seen = |list: &[(&str, v1::ContainerState)]| -> BTreeMap<String, i32> {
            list.iter().map(|(id, state)| (id.to_string(), *state as i32)).collect()
        };
        use v1::ContainerState::{Exited, Running};
        let before = seen(&[("a", Exited), ("b", Running)]);
        assert!(!worth_a_sync(&before, &before));
        assert!(!worth_a_sync(&before, &seen(&[("b", Running)])));
        assert!(worth_a_sync(&before, &seen(&[("a", Exited)])));
        assert!(worth_a_sync(&before, &seen(&[("a", Exited), ("b", Exited)])));
        assert!(worth_a_sync(&before, &seen(&[("a", Exited), ("b", Running), ("c", Running)])));
    }
}
