//! Prefers nodes on which the resources would be used evenly.

use crate::cluster::Cluster;
use crate::config::Profile as Config;
use crate::framework::{CycleState, Plugin, SCORE_MAX, point};
use crate::node::NodeInfo;
use crate::plugins::node_resources_fit::amounts;
use crate::pod::PodInfo;

pub const NAME: &str = "NodeResourcesBalancedAllocation";

pub struct BalancedAllocation {
    resources: Vec<(String, i64)>,
}

impl BalancedAllocation {
    pub fn new(config: &Config) -> Self {
        Self { resources: config.balanced_resources.clone() }
    }
}

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::PRE_SCORE | point::SCORE
    }

    /// A pod that asks for nothing tips no balance.
    fn pre_score(&self, _: &Cluster, pod: &PodInfo, _: &mut CycleState, _: &[usize]) -> bool {
        self.resources.iter().any(|(name, _)| pod.spec.requests.get(name) > 0)
    }

    fn score(&self, _: &Cluster, pod: &PodInfo, _: &CycleState, info: &NodeInfo) -> i64 {
        let fractions: Vec<f64> = self
            .resources
            .iter()
            .map(|(name, _)| amounts(pod, info, name, false))
            .filter(|(offered, _)| *offered > 0)
            .map(|(offered, taken)| (taken as f64 / offered as f64).min(1.0))
            .collect();
        let deviation = match *fractions.as_slice() {
            [a, b] => (a - b).abs() / 2.0,
            ref many if many.len() > 2 => {
                let mean = many.iter().sum::<f64>() / many.len() as f64;
                (many.iter().map(|f| (f - mean).powi(2)).sum::<f64>() / many.len() as f64).sqrt()
            }
            _ => 0.0,
        };
        ((1.0 - deviation) * SCORE_MAX as f64) as i64
    }
}
