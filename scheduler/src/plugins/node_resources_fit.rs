//! Whether a node has room for what a pod requests, and how full nodes are preferred to be.

use std::borrow::Cow;

use crate::cluster::Cluster;
use crate::config::{Profile as Config, ScoringStrategy, Strategy};
use crate::framework::{Change, Code, CycleState, Plugin, Rejection, SCORE_MAX, Verdict, point};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::resources::Resources;

pub const NAME: &str = "NodeResourcesFit";

pub struct Fit {
    scoring: ScoringStrategy,
    ignored: Vec<String>,
    ignored_groups: Vec<String>,
}

impl Fit {
    pub fn new(config: &Config) -> Self {
        Self {
            scoring: config.scoring.clone(),
            ignored: config.ignored_resources.clone(),
            ignored_groups: config.ignored_resource_groups.clone(),
        }
    }

    fn is_ignored(&self, name: &str) -> bool {
        let group = name.split_once('/').map(|(group, _)| group);
        self.ignored.iter().any(|i| i == name) || group.is_some_and(|g| self.ignored_groups.iter().any(|i| i == g))
    }

    fn lacking(&self, wanted: &Resources, info: &NodeInfo, free: impl Fn(&str) -> i64) -> Option<Box<Rejection>> {
        let offered = &info.node().allocatable;
        let mut reasons: Vec<Cow<'static, str>> = Vec::new();
        let mut never = false;
        if info.pods.len() as i64 + 1 > offered.pods {
            reasons.push("Too many pods".into());
        }
        let mut check = |name: &str, amount: i64, reason: Cow<'static, str>| {
            if amount > 0 && amount > free(name) {
                // What no node state could ever satisfy is not worth a preemption.
                never |= amount > offered.get(name);
                reasons.push(reason);
            }
        };
        check("cpu", wanted.cpu_milli, "Insufficient cpu".into());
        check("memory", wanted.memory, "Insufficient memory".into());
        check("ephemeral-storage", wanted.ephemeral_storage, "Insufficient ephemeral-storage".into());
        for (name, amount) in &wanted.scalars {
            if *amount > 0 && *amount > free(name) && !self.is_ignored(name) {
                check(name, *amount, format!("Insufficient {name}").into());
            }
        }
        if reasons.is_empty() {
            return None;
        }
        let code = if never { Code::Unresolvable } else { Code::Unschedulable };
        Some(Box::new(Rejection { code, reasons, plugin: NAME }))
    }

    fn fits_empty(&self, pod: &PodInfo, offered: &Resources) -> bool {
        let wanted = &pod.spec.requests;
        wanted.cpu_milli <= offered.cpu_milli
            && wanted.memory <= offered.memory
            && wanted.ephemeral_storage <= offered.ephemeral_storage
            && offered.pods > 0
            && wanted.scalars.iter().all(|(name, amount)| self.is_ignored(name) || *amount <= offered.get(name))
    }
}

/// The amounts of one resource that scoring compares: offered, and taken with the pod on the node.
pub fn amounts(pod: &PodInfo, info: &NodeInfo, name: &str, with_defaults: bool) -> (i64, i64) {
    let (of_node, of_pod) = if with_defaults && matches!(name, "cpu" | "memory") {
        (&info.requested_scored, &pod.spec.requests_scored)
    } else {
        (&info.requested, &pod.spec.requests)
    };
    let own = of_pod.get(name);
    // A scalar that the pod does not ask for says nothing about where it should go.
    if own == 0 && !matches!(name, "cpu" | "memory" | "ephemeral-storage") {
        return (0, 0);
    }
    (info.node().allocatable.get(name), of_node.get(name) + own)
}

impl Plugin for Fit {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::PRE_FILTER | point::FILTER | point::PRE_SCORE | point::SCORE
    }

    fn may_help(&self, _: &Cluster, pod: &PodInfo, change: &Change) -> bool {
        match change {
            Change::NodeAdded(node) => self.fits_empty(pod, &node.allocatable),
            Change::NodeUpdated { old, new } => {
                self.fits_empty(pod, &new.allocatable) && offers_more(pod, &old.allocatable, &new.allocatable)
            }
            Change::PodDeleted(_) => true,
            Change::PodUpdated { old, new } => {
                let (before, after) = (&old.spec.requests, &new.spec.requests);
                after.cpu_milli < before.cpu_milli || after.memory < before.memory
            }
            Change::OwnUpdated { old, new } => old.spec.requests != new.spec.requests,
            _ => false,
        }
    }

    fn filter(&self, _: &Cluster, pod: &PodInfo, _: &CycleState, info: &NodeInfo) -> Verdict {
        let (offered, taken) = (&info.node().allocatable, &info.requested);
        let wanted = &pod.spec.requests;
        // The common case, without names.
        if (info.pods.len() as i64) < offered.pods
            && (wanted.cpu_milli == 0 || wanted.cpu_milli <= offered.cpu_milli - taken.cpu_milli)
            && (wanted.memory == 0 || wanted.memory <= offered.memory - taken.memory)
            && wanted.ephemeral_storage == 0
            && wanted.scalars.is_empty()
        {
            return Ok(());
        }
        self.lacking(wanted, info, |name| offered.get(name) - taken.get(name)).map_or(Ok(()), Err)
    }

    fn score(&self, _: &Cluster, pod: &PodInfo, _: &CycleState, info: &NodeInfo) -> i64 {
        let (mut sum, mut weights) = (0, 0);
        for (name, weight) in &self.scoring.resources {
            let with_defaults = !matches!(self.scoring.strategy, Strategy::RequestedToCapacityRatio(_));
            let (offered, taken) = amounts(pod, info, name, with_defaults);
            if offered == 0 {
                continue;
            }
            let score = match &self.scoring.strategy {
                Strategy::LeastAllocated if taken > offered => 0,
                Strategy::LeastAllocated => (offered - taken) * SCORE_MAX / offered,
                Strategy::MostAllocated => taken.min(offered) * SCORE_MAX / offered,
                Strategy::RequestedToCapacityRatio(shape) => {
                    let utilization = if taken > offered { 100 } else { taken * 100 / offered };
                    let score = along(shape, utilization);
                    if score <= 0 {
                        continue;
                    }
                    score
                }
            };
            sum += score * weight;
            weights += weight;
        }
        if weights == 0 {
            return 0;
        }
        if matches!(self.scoring.strategy, Strategy::RequestedToCapacityRatio(_)) {
            return (sum as f64 / weights as f64).round() as i64;
        }
        sum / weights
    }
}

fn offers_more(pod: &PodInfo, old: &Resources, new: &Resources) -> bool {
    let wanted = &pod.spec.requests;
    new.pods > old.pods
        || (wanted.cpu_milli > 0 && new.cpu_milli > old.cpu_milli)
        || (wanted.memory > 0 && new.memory > old.memory)
        || (wanted.ephemeral_storage > 0 && new.ephemeral_storage > old.ephemeral_storage)
        || wanted.scalars.iter().any(|(name, _)| new.get(name) > old.get(name))
}

/// The value of a line through points, flat outside of them. The points' scores go to ten.
fn along(shape: &[(i64, i64)], at: i64) -> i64 {
    let scale = |score: i64| score * (SCORE_MAX / 10);
    let Some(next) = shape.iter().position(|(x, _)| at <= *x) else {
        return shape.last().map_or(0, |(_, y)| scale(*y));
    };
    let (x1, y1) = (shape[next].0, scale(shape[next].1));
    if next == 0 {
        return y1;
    }
    let (x0, y0) = (shape[next - 1].0, scale(shape[next - 1].1));
    y0 + (y1 - y0) * (at - x0) / (x1 - x0)
}
