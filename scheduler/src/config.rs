//! How the scheduler is told to work: the part of upstream's KubeSchedulerConfiguration that it heeds.

use std::time::Duration;

use coxswain_client::k8s_openapi::api::core::v1::NodeAffinity;

use crate::pod::SpreadConstraint;

#[derive(Clone, Debug)]
pub struct Config {
    pub profiles: Vec<Profile>,
    /// Absent for a scheduler that is alone.
    pub leader_election: Option<LeaderElection>,
    pub initial_backoff: Duration,
    pub backoff_max: Duration,
    /// How many of the nodes to score, in per cent; by their number if zero.
    pub percentage_of_nodes_to_score: u32,
}

#[derive(Clone, Debug)]
pub struct LeaderElection {
    pub namespace: String,
    pub name: String,
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

#[derive(Clone, Debug)]
pub struct Profile {
    pub scheduler_name: String,
    /// Plugins by name and extension point (`*` is every one) that do not take part.
    pub disabled: Vec<(String, String)>,
    /// Weights other than the default ones.
    pub weights: Vec<(String, i64)>,
    pub percentage_of_nodes_to_score: Option<u32>,
    /// Node affinity that holds for every pod of the profile.
    pub added_affinity: Option<NodeAffinity>,
    pub scoring: ScoringStrategy,
    pub ignored_resources: Vec<String>,
    pub ignored_resource_groups: Vec<String>,
    pub balanced_resources: Vec<(String, i64)>,
    /// Spreading of pods that do not say how; upstream's default if absent.
    pub default_spread: Option<Vec<SpreadConstraint>>,
    pub hard_pod_affinity_weight: i64,
    pub ignore_preferred_terms_of_existing_pods: bool,
    pub preemption_candidates_percentage_min: usize,
    pub preemption_candidates_absolute_min: usize,
}

#[derive(Clone, Debug)]
pub struct ScoringStrategy {
    pub strategy: Strategy,
    pub resources: Vec<(String, i64)>,
}

#[derive(Clone, Debug)]
pub enum Strategy {
    LeastAllocated,
    MostAllocated,
    /// Points of utilization in per cent and score up to ten.
    RequestedToCapacityRatio(Vec<(i64, i64)>),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            profiles: vec![Profile::default()],
            leader_election: None,
            initial_backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(10),
            percentage_of_nodes_to_score: 0,
        }
    }
}

impl Default for LeaderElection {
    fn default() -> Self {
        Self {
            namespace: "kube-system".to_owned(),
            name: "kube-scheduler".to_owned(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

impl Default for Profile {
    fn default() -> Self {
        let cpu_and_memory = vec![("cpu".to_owned(), 1), ("memory".to_owned(), 1)];
        Self {
            scheduler_name: "default-scheduler".to_owned(),
            disabled: Vec::new(),
            weights: Vec::new(),
            percentage_of_nodes_to_score: None,
            added_affinity: None,
            scoring: ScoringStrategy { strategy: Strategy::LeastAllocated, resources: cpu_and_memory.clone() },
            ignored_resources: Vec::new(),
            ignored_resource_groups: Vec::new(),
            balanced_resources: cpu_and_memory,
            default_spread: None,
            hard_pod_affinity_weight: 1,
            ignore_preferred_terms_of_existing_pods: false,
            preemption_candidates_percentage_min: 10,
            preemption_candidates_absolute_min: 100,
        }
    }
}
