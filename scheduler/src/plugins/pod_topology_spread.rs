//! Spreads pods over the domains of a topology: hard constraints rule nodes out, soft ones (and the defaults for pods of
//! services and workloads) prefer emptier domains.
//!
//! The counts per domain are kept between cycles of equal pods and only mended when a pod comes or goes.

use std::sync::Arc;

use crate::cluster::{Cluster, Topology};
use crate::config::Profile as Config;
use crate::framework::{
    Change, CycleState, Plugin, PreFiltered, Rejection, SCORE_MAX, Verdict, point, unresolvable, unschedulable,
};
use crate::node::{Node, NodeInfo};
use crate::plugins::node_affinity::required_matches;
use crate::pod::{PodInfo, SpreadConstraint};

pub const NAME: &str = "PodTopologySpread";
const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
const NO_MATCH: &str = "node(s) didn't match pod topology spread constraints";
const NO_LABEL: &str = "node(s) didn't match pod topology spread constraints (missing required label)";

/// The count of one constraint in each domain.
#[derive(Clone)]
struct Counts {
    constraint: SpreadConstraint,
    topology: Arc<Topology>,
    /// Matching pods on the nodes that count.
    pods: Vec<i64>,
    /// How many nodes that count each domain has.
    nodes: Vec<u32>,
    matches_self: bool,
}

impl Counts {
    fn domains(&self) -> usize {
        self.nodes.iter().filter(|n| **n > 0).count()
    }

    fn least(&self) -> i64 {
        let eligible = self.pods.iter().zip(&self.nodes).filter(|(_, nodes)| **nodes > 0);
        let least = eligible.map(|(pods, _)| *pods).min().unwrap_or(0);
        if (self.domains() as i64) < self.constraint.min_domains { 0 } else { least }
    }
}

#[derive(Clone, Default)]
pub struct State {
    hard: Vec<Counts>,
    /// The least count of each hard constraint, when no simulation changed it.
    least: Vec<i64>,
    soft: Vec<Counts>,
    /// Whether nodes that lack a key of a soft constraint are not counted; they are for default constraints.
    needs_all_keys: bool,
    /// For this cycle: the weight of each soft constraint.
    weights: Vec<f64>,
}

impl State {
    pub fn is_empty(&self) -> bool {
        self.hard.is_empty() && self.soft.is_empty()
    }

    /// Counts a pod that came to a node or left it.
    pub fn moved(&mut self, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, came: bool) {
        if other.deleting || other.key.namespace != pod.key.namespace || node.node.is_none() {
            return;
        }
        let delta = if came { 1 } else { -1 };
        let hard_keys = has_keys(&self.hard, node.node());
        let soft_keys = !self.needs_all_keys || has_keys(&self.soft, node.node());
        let mut changed = false;
        let groups = [(&mut self.hard, hard_keys), (&mut self.soft, soft_keys)];
        for (group, eligible) in groups {
            for counts in group.iter_mut().filter(|_| eligible) {
                let Some(domain) = counts.topology.domain(node.index) else { continue };
                if counts_node(&counts.constraint, pod, node.node())
                    && counts.constraint.selector.matches(&other.labels)
                {
                    counts.pods[domain] += delta;
                    changed = true;
                }
            }
        }
        if changed {
            self.least = self.hard.iter().map(Counts::least).collect();
        }
    }
}

fn has_keys(group: &[Counts], node: &Node) -> bool {
    group.iter().all(|c| node.labels.get(&c.constraint.topology_key).is_some())
}

fn counts_node(constraint: &SpreadConstraint, pod: &PodInfo, node: &Node) -> bool {
    (!constraint.honor_affinity || required_matches(&pod.spec, node))
        && (!constraint.honor_taints
            || node.taints.iter().all(|t| !t.is_hard() || t.tolerated_by(&pod.spec.tolerations)))
}

pub struct PodTopologySpread {
    default_spread: Option<Vec<SpreadConstraint>>,
}

impl PodTopologySpread {
    pub fn new(config: &Config) -> Self {
        Self { default_spread: config.default_spread.clone() }
    }

    /// The constraints of a pod, and whether they are its own.
    fn constraints(&self, cluster: &Cluster, pod: &PodInfo) -> (Vec<SpreadConstraint>, bool) {
        if !pod.spec.spread.is_empty() {
            return (pod.spec.spread.clone(), true);
        }
        let Some(selector) = cluster.workloads.selector_of(pod) else { return (Vec::new(), false) };
        let soft = |topology_key: &str, max_skew| SpreadConstraint {
            max_skew,
            topology_key: topology_key.into(),
            hard: false,
            selector: Default::default(),
            min_domains: 1,
            honor_affinity: true,
            honor_taints: false,
        };
        let defaults = self.default_spread.clone().unwrap_or_else(|| vec![soft(HOSTNAME, 3), soft(ZONE, 5)]);
        let constraints = defaults.into_iter().map(|c| SpreadConstraint { selector: selector.clone(), ..c });
        // The built-in defaults also hold for nodes without zones; a profile's own behave as a pod's.
        (constraints.collect(), self.default_spread.is_some())
    }

    fn state(&self, cluster: &Cluster, pod: &PodInfo) -> State {
        let (constraints, needs_all_keys) = self.constraints(cluster, pod);
        let counts = |hard: bool| -> Vec<Counts> {
            let of_kind = constraints.iter().filter(|c| c.hard == hard);
            of_kind
                .map(|constraint| {
                    let topology = cluster.topology(&constraint.topology_key);
                    Counts {
                        matches_self: constraint.selector.matches(&pod.labels),
                        constraint: constraint.clone(),
                        pods: vec![0; topology.domains],
                        nodes: vec![0; topology.domains],
                        topology,
                    }
                })
                .collect()
        };
        let mut state = State { hard: counts(true), soft: counts(false), needs_all_keys, ..State::default() };
        if state.is_empty() {
            return state;
        }
        for info in cluster.nodes() {
            let hard_keys = has_keys(&state.hard, info.node());
            let soft_keys = !needs_all_keys || has_keys(&state.soft, info.node());
            let groups = [(&mut state.hard, hard_keys), (&mut state.soft, soft_keys)];
            for (group, eligible) in groups {
                for counts in group.iter_mut().filter(|_| eligible) {
                    let Some(domain) = counts.topology.domain(info.index) else { continue };
                    if !counts_node(&counts.constraint, pod, info.node()) {
                        continue;
                    }
                    counts.nodes[domain] += 1;
                    let matching = info.pods.iter().filter(|p| {
                        !p.deleting
                            && p.key.namespace == pod.key.namespace
                            && counts.constraint.selector.matches(&p.labels)
                    });
                    counts.pods[domain] += matching.count() as i64;
                }
            }
        }
        state.least = state.hard.iter().map(Counts::least).collect();
        state
    }
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::PRE_FILTER | point::FILTER | point::PRE_SCORE | point::SCORE
    }

    fn may_help(&self, _: &Cluster, pod: &PodInfo, change: &Change) -> bool {
        let selects = |other: &PodInfo| {
            other.key.namespace == pod.key.namespace
                && pod.spec.spread.iter().any(|c| c.selector.matches(&other.labels))
        };
        match change {
            Change::PodAssigned(other) | Change::PodDeleted(other) => selects(other),
            Change::PodUpdated { old, new } => old.labels != new.labels && (selects(old) || selects(new)),
            Change::OwnUpdated { old, new } => old.labels != new.labels || old.spec.spread != new.spec.spread,
            Change::NodeAdded(node) => {
                pod.spec.spread.iter().filter(|c| c.hard).all(|c| node.labels.get(&c.topology_key).is_some())
            }
            Change::NodeUpdated { old, new } => old.labels != new.labels || old.taints != new.taints,
            Change::NodeDeleted => true,
            _ => false,
        }
    }

    fn pre_filter(
        &self,
        cluster: &Cluster,
        pod: &PodInfo,
        cycle: &mut CycleState,
    ) -> Result<PreFiltered, Box<Rejection>> {
        let state = cycle.spread.get_or_insert_with(|| Arc::new(self.state(cluster, pod)));
        Ok(PreFiltered { skip: state.hard.is_empty(), nodes: None })
    }

    fn filter(&self, _: &Cluster, _: &PodInfo, cycle: &CycleState, info: &NodeInfo) -> Verdict {
        let Some(state) = &cycle.spread else { return Ok(()) };
        for (counts, least) in state.hard.iter().zip(&state.least) {
            let Some(domain) = counts.topology.domain(info.index) else { return unresolvable(NAME, NO_LABEL) };
            let skew = counts.pods[domain] + i64::from(counts.matches_self) - least;
            if skew > counts.constraint.max_skew {
                return unschedulable(NAME, NO_MATCH);
            }
        }
        Ok(())
    }

    fn moved(&self, _: &Cluster, cycle: &mut CycleState, pod: &PodInfo, other: &PodInfo, node: &NodeInfo, came: bool) {
        if let Some(state) = cycle.spread.as_mut().filter(|s| !s.hard.is_empty()) {
            Arc::make_mut(state).moved(pod, other, node, came);
        }
    }

    fn pre_score(&self, cluster: &Cluster, pod: &PodInfo, cycle: &mut CycleState, nodes: &[usize]) -> bool {
        let state = cycle.spread.get_or_insert_with(|| Arc::new(self.state(cluster, pod)));
        if state.soft.is_empty() {
            return false;
        }
        let ignored = |n: usize| state.needs_all_keys && !has_keys(&state.soft, cluster.at(n).node());
        let scored = nodes.iter().filter(|n| !ignored(**n)).count();
        let weights: Vec<f64> = state
            .soft
            .iter()
            .map(|counts| {
                // Topologies with more domains weigh more.
                let domains = if &*counts.constraint.topology_key == HOSTNAME {
                    scored
                } else {
                    let mut seen = vec![false; counts.topology.domains];
                    for domain in nodes.iter().filter(|n| !ignored(**n)).filter_map(|n| counts.topology.domain(*n)) {
                        seen[domain] = true;
                    }
                    seen.iter().filter(|s| **s).count()
                };
                ((domains + 2) as f64).ln()
            })
            .collect();
        if state.weights != weights {
            Arc::make_mut(cycle.spread.as_mut().expect("it was filled above")).weights = weights;
        }
        true
    }

    fn score(&self, _: &Cluster, _: &PodInfo, cycle: &CycleState, info: &NodeInfo) -> i64 {
        let Some(state) = &cycle.spread else { return 0 };
        let score: f64 = state
            .soft
            .iter()
            .zip(&state.weights)
            .filter_map(|(counts, weight)| {
                let pods = counts.pods[counts.topology.domain(info.index)?];
                Some(pods as f64 * weight + (counts.constraint.max_skew - 1) as f64)
            })
            .sum();
        score.round() as i64
    }

    fn normalize(&self, cluster: &Cluster, _: &PodInfo, cycle: &CycleState, nodes: &[usize], scores: &mut [i64]) {
        let Some(state) = &cycle.spread else { return };
        let ignored: Vec<bool> =
            nodes.iter().map(|n| state.needs_all_keys && !has_keys(&state.soft, cluster.at(*n).node())).collect();
        let counted = || scores.iter().zip(&ignored).filter(|(_, ignored)| !**ignored).map(|(s, _)| *s);
        let (min, max) = (counted().min().unwrap_or(0), counted().max().unwrap_or(0));
        for (score, ignored) in scores.iter_mut().zip(&ignored) {
            *score = match (ignored, max) {
                (true, _) => 0,
                (false, 0) => SCORE_MAX,
                (false, max) => SCORE_MAX * (max + min - *score) / max,
            };
        }
    }
}
