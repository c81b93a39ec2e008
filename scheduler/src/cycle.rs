//! One scheduling cycle: finds the nodes where a pod may run, scores them, takes the best; or says why there is none and
//! what PostFilter makes of that. It changes nothing.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rand::Rng;

use crate::cluster::{Cluster, Moved};
use crate::framework::{Code, CycleState, PostFiltered, Preemption, Rejection, Unfit, point, unresolvable};
use crate::plugins::{inter_pod_affinity, pod_topology_spread};
use crate::pod::PodInfo;
use crate::profile::Profile;

/// At least so many nodes are scored, if there are.
const FEASIBLE_MIN: usize = 100;
/// Kinds of pods whose counts are kept.
const REMEMBERED_MAX: usize = 64;

/// Why a pod fits nowhere.
#[derive(Default)]
pub struct Diagnosis {
    pub pre_filter: Option<String>,
    pub statuses: Vec<(usize, Box<Rejection>)>,
    /// The status of the nodes that were not looked at.
    pub absent: Option<Box<Rejection>>,
    pub plugins: BTreeSet<&'static str>,
    pub post_filter: String,
}

impl Diagnosis {
    /// The text that people see.
    pub fn message(&self, nodes: usize) -> String {
        let mut text = format!("0/{nodes} nodes are available:");
        match &self.pre_filter {
            Some(message) => text += &format!(" {message}."),
            None => {
                let mut counts: BTreeMap<&Cow<'static, str>, usize> = BTreeMap::new();
                for reason in self.statuses.iter().flat_map(|(_, r)| &r.reasons) {
                    *counts.entry(reason).or_default() += 1;
                }
                let others = nodes.saturating_sub(self.statuses.len());
                for reason in self.absent.iter().flat_map(|r| &r.reasons).filter(|_| others > 0) {
                    *counts.entry(reason).or_default() += others;
                }
                let mut reasons: Vec<String> =
                    counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
                reasons.sort();
                if !reasons.is_empty() {
                    text += &format!(" {}.", reasons.join(", "));
                }
            }
        }
        if !self.post_filter.is_empty() {
            text += &format!(" {}", self.post_filter);
        }
        text
    }
}

pub enum Outcome {
    Fits { node: usize, state: CycleState },
    Unfit(Failure),
}

pub struct Failure {
    /// Whether no node is fit, rather than something being broken.
    pub unschedulable: bool,
    pub message: String,
    pub plugins: BTreeSet<&'static str>,
    pub preemption: Option<Preemption>,
    pub clear_nomination: bool,
}

impl Failure {
    pub fn rejected(rejection: &Rejection) -> Self {
        Self {
            unschedulable: rejection.code != Code::Error,
            message: rejection.message(),
            plugins: BTreeSet::from([rejection.plugin]),
            preemption: None,
            clear_nomination: false,
        }
    }
}

/// Counts of recent kinds of pods, kept right as pods come and go. What else they depend on clears them.
#[derive(Default)]
pub struct Memory {
    kinds: HashMap<u64, Kind>,
    clock: u64,
}

struct Kind {
    pod: Arc<PodInfo>,
    affinity: Option<Arc<inter_pod_affinity::State>>,
    spread: Option<Arc<pod_topology_spread::State>>,
    used: u64,
}

impl Memory {
    pub fn clear(&mut self) {
        self.kinds.clear();
    }

    pub fn moved(&mut self, cluster: &Cluster, moved: &Moved) {
        let info = cluster.at(moved.node);
        for kind in self.kinds.values_mut() {
            if let Some(state) = kind.spread.as_mut().filter(|s| !s.is_empty()) {
                Arc::make_mut(state).moved(&kind.pod, &moved.pod, info, moved.came);
            }
            if let Some(state) = &mut kind.affinity
                && (kind.pod.spec.has_affinity() || moved.pod.spec.has_affinity())
            {
                Arc::make_mut(state).moved(cluster, &kind.pod, &moved.pod, info, moved.came);
            }
        }
    }

    fn recall(&mut self, pod: &PodInfo) -> CycleState {
        self.clock += 1;
        let Some(kind) = self.kinds.get_mut(&pod.class) else { return CycleState::default() };
        kind.used = self.clock;
        CycleState { affinity: kind.affinity.clone(), spread: kind.spread.clone(), ..CycleState::default() }
    }

    fn remember(&mut self, pod: &Arc<PodInfo>, state: &CycleState) {
        if self.kinds.len() >= REMEMBERED_MAX
            && !self.kinds.contains_key(&pod.class)
            && let Some(oldest) = self.kinds.iter().min_by_key(|(_, kind)| kind.used).map(|(class, _)| *class)
        {
            self.kinds.remove(&oldest);
        }
        let kind =
            Kind { pod: pod.clone(), affinity: state.affinity.clone(), spread: state.spread.clone(), used: self.clock };
        self.kinds.insert(pod.class, kind);
    }
}

/// `start` is where the search begins, so that successive pods look at other nodes first.
pub fn schedule(
    cluster: &Cluster,
    profile: &Profile,
    memory: &mut Memory,
    pod: &Arc<PodInfo>,
    start: &mut usize,
) -> Outcome {
    if cluster.is_empty() {
        return Outcome::Unfit(Failure {
            unschedulable: true,
            message: "no nodes available to schedule pods".to_owned(),
            plugins: BTreeSet::new(),
            preemption: None,
            clear_nomination: false,
        });
    }
    let mut state = memory.recall(pod);
    let mut diagnosis = Diagnosis::default();
    let feasible = find(cluster, profile, &mut state, pod, start, &mut diagnosis);
    memory.remember(pod, &state);
    let feasible = match feasible {
        Ok(feasible) => feasible,
        Err(rejection) if rejection.code == Code::Error => return Outcome::Unfit(Failure::rejected(&rejection)),
        Err(rejection) => {
            diagnosis.plugins.insert(rejection.plugin);
            diagnosis.pre_filter = Some(rejection.message());
            Vec::new()
        }
    };
    match feasible.as_slice() {
        [] => Outcome::Unfit(unfit(cluster, profile, &state, pod, diagnosis)),
        [only] => Outcome::Fits { node: *only, state },
        _ => {
            let scores = profile.score(cluster, &mut state, pod, &feasible);
            memory.remember(pod, &state);
            Outcome::Fits { node: feasible[best(&scores)], state }
        }
    }
}

/// The place of the highest score; any of them if there are several.
fn best(scores: &[i64]) -> usize {
    let (mut best, mut equals) = (0, 1);
    for (at, score) in scores.iter().enumerate().skip(1) {
        if *score > scores[best] {
            (best, equals) = (at, 1);
        } else if *score == scores[best] {
            equals += 1;
            if rand::rng().random_range(0..equals) == 0 {
                best = at;
            }
        }
    }
    best
}

/// How many feasible nodes are enough, of so many.
fn enough(nodes: usize, percentage: u32) -> usize {
    if nodes < FEASIBLE_MIN {
        return nodes;
    }
    let percentage = match percentage as usize {
        0 => 50usize.saturating_sub(nodes / 125).max(5),
        given => given,
    };
    (nodes * percentage.min(100) / 100).max(FEASIBLE_MIN)
}

fn find(
    cluster: &Cluster,
    profile: &Profile,
    state: &mut CycleState,
    pod: &Arc<PodInfo>,
    start: &mut usize,
    diagnosis: &mut Diagnosis,
) -> Result<Vec<usize>, Box<Rejection>> {
    let confined = profile.pre_filter(cluster, pod, state)?;
    // Room was made for it there.
    if let Some(info) = cluster.nominated_node(&pod.uid).and_then(|name| cluster.node(name)) {
        let allowed = confined.as_ref().is_none_or(|(names, _)| names.contains(&info.node().name));
        if allowed && profile.fits(cluster, state, pod, info).is_ok() {
            return Ok(vec![info.index]);
        }
    }
    let mut feasible = Vec::new();
    let mut look = |index: usize, diagnosis: &mut Diagnosis| match profile.fits(cluster, state, pod, cluster.at(index))
    {
        Ok(()) => feasible.push(index),
        Err(rejection) => {
            diagnosis.plugins.insert(rejection.plugin);
            diagnosis.statuses.push((index, rejection));
        }
    };
    if let Some((names, by)) = confined {
        for info in names.iter().filter_map(|name| cluster.node(name)) {
            look(info.index, diagnosis);
        }
        let by_names = by.iter().copied().collect::<Vec<_>>().join(" ");
        diagnosis.plugins.extend(by);
        let first = "NodeAffinity";
        diagnosis.absent = unresolvable(first, format!("node(s) didn't satisfy plugin(s) [{by_names}]")).err();
        return Ok(feasible);
    }
    let order = cluster.order();
    let wanted = enough(order.len(), profile.percentage_of_nodes_to_score);
    let mut seen = 0;
    let mut found = 0;
    for at in 0..order.len() {
        if found >= wanted {
            break;
        }
        let index = order[(*start + at) % order.len()];
        let before = diagnosis.statuses.len();
        look(index, diagnosis);
        found += usize::from(diagnosis.statuses.len() == before);
        seen += 1;
    }
    *start = (*start + seen) % order.len();
    Ok(feasible)
}

fn unfit(
    cluster: &Cluster,
    profile: &Profile,
    state: &CycleState,
    pod: &Arc<PodInfo>,
    mut diagnosis: Diagnosis,
) -> Failure {
    let mut messages = Vec::new();
    let mut preemption = None;
    let mut clear_nomination = false;
    for plugin in profile.plugins_at(point::POST_FILTER) {
        match plugin.post_filter(&Unfit { cluster, profile, state, pod, diagnosis: &diagnosis }) {
            PostFiltered::Preempt(found) => {
                preemption = Some(found);
                messages.clear();
                break;
            }
            PostFiltered::Rejected { message, clear } => {
                clear_nomination |= clear;
                messages.push(message);
            }
            PostFiltered::Failed(message) => {
                messages = vec![message];
                break;
            }
        }
    }
    diagnosis.post_filter = messages.join(", ");
    Failure {
        unschedulable: true,
        message: diagnosis.message(cluster.len()),
        plugins: diagnosis.plugins,
        preemption,
        clear_nomination,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_clusters_are_searched_whole_and_large_ones_in_part() {
        assert_eq!([50, 100, 1000, 5000].map(|n| enough(n, 0)), [50, 100, 420, 500]);
        assert_eq!(enough(1000, 100), 1000);
    }

    #[test]
    fn reasons_are_counted_and_sorted_as_text() {
        let reject = |reason: &'static str| unresolvable("X", reason).expect_err("it is a rejection");
        let mut diagnosis = Diagnosis {
            statuses: vec![(0, reject("Insufficient cpu")), (1, reject("a")), (2, reject("Insufficient cpu"))],
            absent: Some(reject("not looked at")),
            post_filter: "preemption: none".to_owned(),
            ..Diagnosis::default()
        };
        assert_eq!(
            diagnosis.message(12),
            "0/12 nodes are available: 1 a, 2 Insufficient cpu, 9 not looked at. preemption: none"
        );
        diagnosis.pre_filter = Some("no claim".to_owned());
        assert_eq!(diagnosis.message(12), "0/12 nodes are available: no claim. preemption: none");
    }

    /// Pods of a few kinds: with and without affinity of each sort, and constraints of both.
    fn pod(kind: u8, uid: usize) -> Arc<PodInfo> {
        use serde_json::json;
        let app = |name: &str| json!({"matchLabels": {"app": name}});
        let term = |name: &str, key: &str| json!({"labelSelector": app(name), "topologyKey": key});
        let (host, zone) = ("kubernetes.io/hostname", "topology.kubernetes.io/zone");
        let spread = |key: &str, when: &str| json!([{"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": when, "labelSelector": app("a")}]);
        let (label, mut spec) = match kind % 6 {
            0 => ("a", json!({})),
            1 => ("a", json!({"topologySpreadConstraints": spread(zone, "DoNotSchedule")})),
            2 => ("a", json!({"topologySpreadConstraints": spread(host, "ScheduleAnyway")})),
            3 => (
                "b",
                json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term("a", zone)]}}}),
            ),
            4 => (
                "b",
                json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term("b", host)]}}}),
            ),
            _ => (
                "c",
                json!({"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
                [{"weight": 5, "podAffinityTerm": term("b", zone)}]}}}),
            ),
        };
        spec["containers"] = json!([{"name": "c", "image": "i"}]);
        let pod = json!({"metadata": {"name": format!("p{uid}"), "namespace": "ns", "uid": format!("{uid}"),
            "labels": {"app": label}}, "spec": spec});
        Arc::new(PodInfo::new(serde_json::from_value(pod).expect("a pod")))
    }

    fn cluster() -> Cluster {
        use serde_json::json;
        let mut cluster = Cluster::default();
        for i in 0..6 {
            let node = json!({"metadata": {"name": format!("n{i}"), "labels": {"kubernetes.io/hostname": format!("n{i}"),
                "topology.kubernetes.io/zone": format!("z{}", i % 3)}},
                "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}}});
            cluster.set_node(Arc::new(crate::node::Node::new(serde_json::from_value(node).expect("a node"))));
        }
        cluster
    }

    fn verdicts(cluster: &Cluster, profile: &Profile, pod: &PodInfo, mut state: CycleState) -> (Vec<bool>, Vec<i64>) {
        let nodes: Vec<usize> = cluster.order().to_vec();
        profile.pre_filter(cluster, pod, &mut state).expect("no claims are involved");
        let fits = nodes.iter().map(|n| profile.fits(cluster, &state, pod, cluster.at(*n)).is_ok()).collect();
        (fits, profile.score(cluster, &mut state, pod, &nodes))
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

        #[test]
        fn counts_that_are_kept_equal_counts_made_anew(steps in proptest::collection::vec((0u8..6, 0u8..8), 1..60)) {
            let mut cluster = cluster();
            let profile = Profile::new(&crate::config::Profile::default(), 0, &cluster.volumes);
            let (mut memory, mut start) = (Memory::default(), 0);
            let mut placed: Vec<Arc<PodInfo>> = Vec::new();
            for (at, (kind, what)) in steps.into_iter().enumerate() {
                let mut moves = Vec::new();
                if what == 0 && !placed.is_empty() {
                    moves.extend(cluster.unplace(&placed.swap_remove(at % placed.len()).uid));
                } else if what == 1 && !placed.is_empty() {
                    let mut leaving = (*placed[at % placed.len()]).clone();
                    leaving.deleting = true;
                    moves = cluster.place(Arc::new(leaving), false);
                } else {
                    let pod = pod(kind, at);
                    if let Outcome::Fits { node, .. } = schedule(&cluster, &profile, &mut memory, &pod, &mut start) {
                        let name = cluster.at(node).node().name.clone();
                        let pod = Arc::new(pod.on_node(&name));
                        placed.push(pod.clone());
                        moves = cluster.place(pod, true);
                    }
                }
                for moved in &moves {
                    memory.moved(&cluster, moved);
                }
                for kind in 0..6 {
                    let pod = pod(kind, 1000);
                    let kept = verdicts(&cluster, &profile, &pod, memory.recall(&pod));
                    let anew = verdicts(&cluster, &profile, &pod, CycleState::default());
                    proptest::prop_assert_eq!(kept, anew);
                }
            }
        }

        /// Preemption simulates with the same counts: taking pods away and putting them back must change nothing.
        #[test]
        fn what_leaves_and_comes_back_changes_no_verdict(kinds in proptest::collection::vec(0u8..6, 1..30)) {
            let mut cluster = cluster();
            let profile = Profile::new(&crate::config::Profile::default(), 0, &cluster.volumes);
            for (at, kind) in kinds.iter().enumerate() {
                cluster.place(Arc::new(pod(*kind, at).on_node(&format!("n{}", at % 6))), false);
            }
            for kind in 0..6 {
                let pod = pod(kind, 1000);
                let mut state = CycleState::default();
                profile.pre_filter(&cluster, &pod, &mut state).expect("no claims are involved");
                let before: Vec<bool> = cluster.nodes().map(|n| profile.fits(&cluster, &state, &pod, n).is_ok()).collect();
                for came in [false, true] {
                    for (node, other) in cluster.nodes().flat_map(|n| n.pods.iter().map(move |p| (n, p))) {
                        profile.moved(&cluster, &mut state, &pod, other, node, came);
                    }
                }
                let after: Vec<bool> = cluster.nodes().map(|n| profile.fits(&cluster, &state, &pod, n).is_ok()).collect();
                proptest::prop_assert_eq!(before, after);
            }
        }
    }
}
