//! Holds pods to their node selector and node affinity, and prefers nodes as they say.

use std::collections::HashSet;

use crate::cluster::Cluster;
use crate::config::Profile as Config;
use crate::framework::{self, Change, CycleState, Plugin, PreFiltered, Rejection, Verdict, point, unresolvable};
use crate::node::{Node, NodeInfo};
use crate::pod::{PodInfo, Spec};
use crate::selector::NodeTerm;

pub const NAME: &str = "NodeAffinity";
const NO_MATCH: &str = "node(s) didn't match Pod's node affinity/selector";
const NOT_ENFORCED: &str = "node(s) didn't match scheduler-enforced node affinity";

pub struct NodeAffinity {
    /// What the profile adds to every pod.
    required: Option<Vec<NodeTerm>>,
    preferred: Vec<(i64, NodeTerm)>,
}

impl NodeAffinity {
    pub fn new(config: &Config) -> Self {
        let added = config.added_affinity.clone().unwrap_or_default();
        let required = added.required_during_scheduling_ignored_during_execution;
        let preferred = added.preferred_during_scheduling_ignored_during_execution;
        Self {
            required: required.map(|r| r.node_selector_terms.iter().map(NodeTerm::new).collect()),
            preferred: preferred
                .iter()
                .flatten()
                .map(|p| (i64::from(p.weight), NodeTerm::new(&p.preference)))
                .collect(),
        }
    }

    fn enforced(&self, node: &Node) -> bool {
        self.required.as_ref().is_none_or(|terms| terms.iter().any(|t| t.matches(&node.name, &node.labels)))
    }
}

/// Whether the node selector and the required affinity of a pod let it onto a node.
pub fn required_matches(spec: &Spec, node: &Node) -> bool {
    spec.node_selector.matches(&node.labels)
        && spec.node_terms.as_ref().is_none_or(|terms| terms.iter().any(|t| t.matches(&node.name, &node.labels)))
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::PRE_FILTER | point::FILTER | point::PRE_SCORE | point::SCORE
    }

    fn may_help(&self, _: &Cluster, pod: &PodInfo, change: &Change) -> bool {
        match change {
            Change::NodeAdded(node) => self.enforced(node) && required_matches(&pod.spec, node),
            Change::NodeUpdated { old, new } => {
                let fits = |node: &Node| self.enforced(node) && required_matches(&pod.spec, node);
                !fits(old) && fits(new)
            }
            Change::OwnUpdated { old, new } => {
                old.spec.node_selector != new.spec.node_selector || old.spec.node_terms != new.spec.node_terms
            }
            _ => false,
        }
    }

    fn pre_filter(&self, _: &Cluster, pod: &PodInfo, _: &mut CycleState) -> Result<PreFiltered, Box<Rejection>> {
        let Some(terms) = &pod.spec.node_terms else {
            return Ok(PreFiltered {
                skip: self.required.is_none() && pod.spec.node_selector.is_everything(),
                nodes: None,
            });
        };
        // Pods of daemons name their node: there is no need to visit the others.
        let mut nodes: HashSet<Box<str>> = HashSet::new();
        for term in terms {
            match term.names() {
                Some(names) => nodes.extend(names.into_iter().map(Box::from)),
                None => return Ok(PreFiltered::default()),
            }
        }
        if nodes.is_empty() && !terms.is_empty() {
            return unresolvable(NAME, "pod affinity terms conflict").map(|()| PreFiltered::default());
        }
        Ok(PreFiltered { skip: false, nodes: Some(nodes).filter(|n| !n.is_empty()) })
    }

    fn filter(&self, _: &Cluster, pod: &PodInfo, _: &CycleState, info: &NodeInfo) -> Verdict {
        if !self.enforced(info.node()) {
            return unresolvable(NAME, NOT_ENFORCED);
        }
        if !required_matches(&pod.spec, info.node()) {
            return unresolvable(NAME, NO_MATCH);
        }
        Ok(())
    }

    fn pre_score(&self, _: &Cluster, pod: &PodInfo, _: &mut CycleState, _: &[usize]) -> bool {
        !(pod.spec.preferred_node_terms.is_empty() && self.preferred.is_empty())
    }

    fn score(&self, _: &Cluster, pod: &PodInfo, _: &CycleState, info: &NodeInfo) -> i64 {
        let node = info.node();
        let preferred = self.preferred.iter().chain(&pod.spec.preferred_node_terms);
        preferred.filter(|(_, term)| term.matches(&node.name, &node.labels)).map(|(weight, _)| weight).sum()
    }

    fn normalize(&self, _: &Cluster, _: &PodInfo, _: &CycleState, _: &[usize], scores: &mut [i64]) {
        framework::normalize(scores, false);
    }
}
