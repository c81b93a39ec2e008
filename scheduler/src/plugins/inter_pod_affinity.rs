//! Holds pods to their affinity and anti-affinity to other pods, and other pods' to them.
//!
//! The counts per domain are kept between cycles of equal pods and only mended when a pod comes or goes.

use std::sync::Arc;

use crate::cluster::{Cluster, Topology};
use crate::config::Profile as Config;
use crate::framework::{
    Change, CycleState, Plugin, PreFiltered, Rejection, SCORE_MAX, Verdict, point, unresolvable, unschedulable,
};
use crate::node::NodeInfo;
use crate::pod::{PodInfo, PodTerm};

pub const NAME: &str = "InterPodAffinity";
const AFFINITY: &str = "node(s) didn't match pod affinity rules";
const ANTI_AFFINITY: &str = "node(s) didn't match pod anti-affinity rules";
const EXISTING: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

/// A number for each domain of a topology key.
#[derive(Clone)]
struct Counts {
    key: Box<str>,
    topology: Arc<Topology>,
    in_domain: Vec<i64>,
}

impl Counts {
    fn new(cluster: &Cluster, key: &str) -> Self {
        let topology = cluster.topology(key);
        Self { key: key.into(), in_domain: vec![0; topology.domains], topology }
    }

    fn add(&mut self, node: usize, amount: i64) {
        if let Some(domain) = self.topology.domain(node) {
            self.in_domain[domain] += amount;
        }
    }

    fn at(&self, node: usize) -> i64 {
        self.topology.domain(node).map_or(0, |domain| self.in_domain[domain])
    }
}

fn of_key<'a>(all: &'a mut Vec<Counts>, cluster: &Cluster, key: &str) -> &'a mut Counts {
    let at = all.iter().position(|c| *c.key == *key).unwrap_or_else(|| {
        all.push(Counts::new(cluster, key));
        all.len() - 1
    });
    &mut all[at]
}

#[derive(Clone, Default)]
pub struct State {
    /// Pods whose required anti-affinity the pod in question meets, by key.
    existing_anti: Vec<Counts>,
    /// Pods that match all the affinity terms, for each term; and pods that match an anti-affinity term, for each.
    affinity: Vec<Counts>,
    anti_affinity: Vec<Counts>,
    /// Whether the pod matches its own affinity terms, so that it may be the first of its kind.
    matches_self: bool,
    /// Preferences, by key.
    scores: Vec<Counts>,
    hard_weight: i64,
    ignores_existing: bool,
}

impl State {
    /// Counts a pod that came to a node or left it.
    pub fn moved(&mut self, cluster: &Cluster, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, came: bool) {
        if node.node.is_none() {
            return;
        }
        let delta = if came { 1 } else { -1 };
        let other_labels = cluster.namespace_labels(&other.key.namespace);
        let own_labels = cluster.namespace_labels(&pod.key.namespace);
        let matches_other = |term: &PodTerm| term.matches(other, other_labels);
        let matches_own = |term: &&PodTerm| term.matches(pod, own_labels);
        for term in other.spec.anti_affinity.iter().filter(matches_own) {
            of_key(&mut self.existing_anti, cluster, &term.topology_key).add(node.index, delta);
        }
        if !pod.spec.affinity.is_empty() && pod.spec.affinity.iter().all(matches_other) {
            self.affinity.iter_mut().for_each(|counts| counts.add(node.index, delta));
        }
        for (term, counts) in pod.spec.anti_affinity.iter().zip(&mut self.anti_affinity) {
            if matches_other(term) {
                counts.add(node.index, delta);
            }
        }
        let own = pod.spec.preferred_affinity.iter().map(|t| (t, t.weight));
        let own = own.chain(pod.spec.preferred_anti_affinity.iter().map(|t| (t, -t.weight)));
        for (term, weight) in own.filter(|(t, _)| matches_other(t)) {
            of_key(&mut self.scores, cluster, &term.topology_key).add(node.index, delta * weight);
        }
        if !other.spec.has_affinity() {
            return;
        }
        if self.hard_weight > 0 {
            for term in other.spec.affinity.iter().filter(matches_own) {
                of_key(&mut self.scores, cluster, &term.topology_key).add(node.index, delta * self.hard_weight);
            }
        }
        if !self.ignores_existing {
            for term in other.spec.preferred_affinity.iter().filter(matches_own) {
                of_key(&mut self.scores, cluster, &term.topology_key).add(node.index, delta * term.weight);
            }
            for term in other.spec.preferred_anti_affinity.iter().filter(matches_own) {
                of_key(&mut self.scores, cluster, &term.topology_key).add(node.index, -delta * term.weight);
            }
        }
    }
}

pub struct InterPodAffinity {
    hard_weight: i64,
    ignores_existing: bool,
}

impl InterPodAffinity {
    pub fn new(config: &Config) -> Self {
        Self {
            hard_weight: config.hard_pod_affinity_weight,
            ignores_existing: config.ignore_preferred_terms_of_existing_pods,
        }
    }

    fn state(&self, cluster: &Cluster, pod: &PodInfo) -> State {
        let counts = |terms: &[PodTerm]| terms.iter().map(|t| Counts::new(cluster, &t.topology_key)).collect();
        let own_labels = cluster.namespace_labels(&pod.key.namespace);
        let mut state = State {
            affinity: counts(&pod.spec.affinity),
            anti_affinity: counts(&pod.spec.anti_affinity),
            matches_self: pod.spec.affinity.iter().all(|t| t.matches(pod, own_labels)),
            hard_weight: self.hard_weight,
            ignores_existing: self.ignores_existing,
            ..State::default()
        };
        let has_terms = pod.spec.has_affinity();
        for info in cluster.nodes().filter(|info| has_terms || info.with_affinity > 0) {
            for other in info.pods.iter().filter(|other| has_terms || other.spec.has_affinity()) {
                state.moved(cluster, pod, other, info, true);
            }
        }
        state
    }
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::PRE_FILTER | point::FILTER | point::PRE_SCORE | point::SCORE
    }

    fn may_help(&self, cluster: &Cluster, pod: &PodInfo, change: &Change) -> bool {
        let meant = |terms: &[PodTerm], other: &PodInfo| {
            let labels = cluster.namespace_labels(&other.key.namespace);
            terms.iter().any(|t| t.matches(other, labels))
        };
        match change {
            Change::PodAssigned(other) => meant(&pod.spec.affinity, other),
            Change::PodUpdated { old, new } => {
                old.labels != new.labels && (meant(&pod.spec.affinity, new) || meant(&pod.spec.anti_affinity, old))
            }
            Change::PodDeleted(other) => {
                let own_labels = cluster.namespace_labels(&pod.key.namespace);
                meant(&pod.spec.anti_affinity, other)
                    || other.spec.anti_affinity.iter().any(|t| t.matches(pod, own_labels))
            }
            Change::OwnUpdated { old, new } => old.labels != new.labels,
            Change::NodeAdded(node) => {
                let on_node = |t: &PodTerm| node.labels.get(&t.topology_key).is_some();
                pod.spec.affinity.iter().all(on_node)
            }
            Change::NodeUpdated { old, new } => old.labels != new.labels,
            Change::NamespaceUpdated => true,
            _ => false,
        }
    }

    fn pre_filter(
        &self,
        cluster: &Cluster,
        pod: &PodInfo,
        cycle: &mut CycleState,
    ) -> Result<PreFiltered, Box<Rejection>> {
        let state = cycle.affinity.get_or_insert_with(|| Arc::new(self.state(cluster, pod)));
        let skip = state.affinity.is_empty() && state.anti_affinity.is_empty() && state.existing_anti.is_empty();
        Ok(PreFiltered { skip, nodes: None })
    }

    fn filter(&self, _: &Cluster, _: &PodInfo, cycle: &CycleState, info: &NodeInfo) -> Verdict {
        let Some(state) = &cycle.affinity else { return Ok(()) };
        if !state.affinity.is_empty() {
            let has_keys = state.affinity.iter().all(|c| c.topology.domain(info.index).is_some());
            let met = state.affinity.iter().all(|c| c.at(info.index) > 0);
            // The first pod of a series that wants to be together may go anywhere.
            let first = || state.matches_self && state.affinity.iter().all(|c| c.in_domain.iter().all(|n| *n == 0));
            if !has_keys || !(met || first()) {
                return unresolvable(NAME, AFFINITY);
            }
        }
        if state.anti_affinity.iter().any(|c| c.at(info.index) > 0) {
            return unschedulable(NAME, ANTI_AFFINITY);
        }
        if state.existing_anti.iter().any(|c| c.at(info.index) > 0) {
            return unschedulable(NAME, EXISTING);
        }
        Ok(())
    }

    fn moved(
        &self,
        cluster: &Cluster,
        cycle: &mut CycleState,
        pod: &PodInfo,
        other: &PodInfo,
        node: &NodeInfo,
        came: bool,
    ) {
        if !pod.spec.has_affinity() && !other.spec.has_affinity() {
            return;
        }
        if let Some(state) = &mut cycle.affinity {
            Arc::make_mut(state).moved(cluster, pod, other, node, came);
        }
    }

    fn pre_score(&self, cluster: &Cluster, pod: &PodInfo, cycle: &mut CycleState, _: &[usize]) -> bool {
        let state = cycle.affinity.get_or_insert_with(|| Arc::new(self.state(cluster, pod)));
        !state.scores.is_empty()
    }

    fn score(&self, _: &Cluster, _: &PodInfo, cycle: &CycleState, info: &NodeInfo) -> i64 {
        cycle.affinity.as_ref().map_or(0, |state| state.scores.iter().map(|c| c.at(info.index)).sum())
    }

    fn normalize(&self, _: &Cluster, _: &PodInfo, _: &CycleState, _: &[usize], scores: &mut [i64]) {
        let (min, max) = (scores.iter().min().copied().unwrap_or(0), scores.iter().max().copied().unwrap_or(0));
        for score in scores {
            *score = if max > min { (SCORE_MAX as f64 * (*score - min) as f64 / (max - min) as f64) as i64 } else { 0 };
        }
    }
}
