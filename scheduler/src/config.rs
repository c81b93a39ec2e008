//! How the scheduler is told to work: the part of upstream's KubeSchedulerConfiguration that it heeds.

use std::time::Duration;

use coxswain_client::k8s_openapi::api::core::v1::NodeAffinity;
use coxswain_client::leader::LeaderElection;
use serde_json::Value;

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
pub struct Profile {
    pub scheduler_name: String,
    /// Plugins by name and extension point (`*` is every one) that do not take part.
    pub disabled: Vec<(String, String)>,
    /// Exceptions from [`Self::disabled`].
    pub enabled: Vec<(String, String)>,
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

impl Default for Profile {
    fn default() -> Self {
        let cpu_and_memory = vec![("cpu".to_owned(), 1), ("memory".to_owned(), 1)];
        Self {
            scheduler_name: "default-scheduler".to_owned(),
            disabled: Vec::new(),
            enabled: Vec::new(),
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

/// A configuration that is not understood, with the path of the field.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{path}: {why}")]
pub struct Invalid {
    pub path: String,
    pub why: String,
}

fn invalid<T>(path: impl Into<String>, why: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid { path: path.into(), why: why.into() })
}

/// Names and weights.
type Weighted = Vec<(String, i64)>;

impl Config {
    /// Reads a KubeSchedulerConfiguration of `kubescheduler.config.k8s.io/v1`. Fields that are absent have upstream's defaults.
    pub fn from_value(value: &Value) -> Result<Self, Invalid> {
        let (version, kind) = (text(value, "apiVersion"), text(value, "kind"));
        if version != Some("kubescheduler.config.k8s.io/v1") || kind != Some("KubeSchedulerConfiguration") {
            return invalid("apiVersion", "it must be a KubeSchedulerConfiguration of kubescheduler.config.k8s.io/v1");
        }
        let mut config = Self { leader_election: Some(LeaderElection::named("kube-scheduler")), ..Self::default() };
        let election = &value["leaderElection"];
        if election["leaderElect"] == Value::Bool(false) {
            config.leader_election = None;
        }
        if let Some(own) = &mut config.leader_election {
            own.namespace = text(election, "resourceNamespace").unwrap_or(&own.namespace).to_owned();
            own.name = text(election, "resourceName").unwrap_or(&own.name).to_owned();
            let durations = [
                ("leaseDuration", &mut own.lease_duration),
                ("renewDeadline", &mut own.renew_deadline),
                ("retryPeriod", &mut own.retry_period),
            ];
            for (field, duration) in durations {
                if let Some(given) = text(election, field) {
                    match given.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok()) {
                        Some(parsed) => *duration = parsed,
                        None => return invalid(format!("leaderElection.{field}"), format!("{given:?} is no duration")),
                    }
                }
            }
        }
        let seconds = |field: &str| value[field].as_u64().map(Duration::from_secs);
        config.initial_backoff = seconds("podInitialBackoffSeconds").unwrap_or(config.initial_backoff);
        config.backoff_max = seconds("podMaxBackoffSeconds").unwrap_or(config.backoff_max);
        if config.backoff_max < config.initial_backoff || config.initial_backoff.is_zero() {
            return invalid("podMaxBackoffSeconds", "must be greater than or equal to podInitialBackoffSeconds");
        }
        if value["extenders"].as_array().is_some_and(|e| !e.is_empty()) {
            return invalid("extenders", "extenders are not supported");
        }
        config.percentage_of_nodes_to_score = percentage(value, "percentageOfNodesToScore")?.unwrap_or(0);
        if let Some(profiles) = value["profiles"].as_array().filter(|p| !p.is_empty()) {
            let read = |(at, p)| Profile::from_value(p, &format!("profiles[{at}]"));
            config.profiles = profiles.iter().enumerate().map(read).collect::<Result<_, _>>()?;
        }
        Ok(config)
    }
}

fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value[field].as_str().filter(|t| !t.is_empty())
}

fn percentage(value: &Value, field: &str) -> Result<Option<u32>, Invalid> {
    match &value[field] {
        Value::Null => Ok(None),
        given => match given.as_u64().filter(|p| *p <= 100) {
            Some(percentage) => Ok(Some(percentage as u32)),
            None => invalid(field, "not in valid range [0-100]"),
        },
    }
}

impl Profile {
    fn from_value(value: &Value, path: &str) -> Result<Self, Invalid> {
        let mut profile = Self::default();
        profile.scheduler_name = text(value, "schedulerName").unwrap_or(&profile.scheduler_name).to_owned();
        profile.percentage_of_nodes_to_score = percentage(value, "percentageOfNodesToScore")?;
        for (point, set) in value["plugins"].as_object().into_iter().flatten() {
            let at = if point == "multiPoint" { "*" } else { point.as_str() };
            let path = format!("{path}.plugins.{point}");
            for plugin in set["disabled"].as_array().into_iter().flatten() {
                profile.disabled.push((text(plugin, "name").unwrap_or_default().to_owned(), at.to_owned()));
            }
            for plugin in set["enabled"].as_array().into_iter().flatten() {
                let name = text(plugin, "name").unwrap_or_default();
                if crate::plugins::PLUGINS.iter().all(|known| known.name != name) {
                    return invalid(path, format!("{name:?} is no plugin"));
                }
                // What is enabled by name takes part even where everything is disabled.
                profile.enabled.push((name.to_owned(), at.to_owned()));
                if let Some(weight) = plugin["weight"].as_i64().filter(|w| *w > 0) {
                    profile.weights.push((name.to_owned(), weight));
                }
            }
        }
        for (index, plugin) in value["pluginConfig"].as_array().into_iter().flatten().enumerate() {
            let path = format!("{path}.pluginConfig[{index}].args");
            profile.set_arguments(text(plugin, "name").unwrap_or_default(), &plugin["args"], &path)?;
        }
        Ok(profile)
    }

    fn set_arguments(&mut self, plugin: &str, arguments: &Value, path: &str) -> Result<(), Invalid> {
        match plugin {
            "NodeAffinity" => {
                let added = serde_json::from_value(arguments["addedAffinity"].clone());
                self.added_affinity = added.or_else(|e| invalid(format!("{path}.addedAffinity"), e.to_string()))?;
            }
            "InterPodAffinity" => {
                let weight = &arguments["hardPodAffinityWeight"];
                self.hard_pod_affinity_weight = weight.as_i64().unwrap_or(self.hard_pod_affinity_weight);
                self.ignore_preferred_terms_of_existing_pods =
                    arguments["ignorePreferredTermsOfExistingPods"].as_bool().unwrap_or(false);
            }
            "DefaultPreemption" => {
                let number = |field: &str, default: usize| arguments[field].as_u64().map_or(default, |n| n as usize);
                self.preemption_candidates_percentage_min =
                    number("minCandidateNodesPercentage", self.preemption_candidates_percentage_min);
                self.preemption_candidates_absolute_min =
                    number("minCandidateNodesAbsolute", self.preemption_candidates_absolute_min);
            }
            "NodeResourcesBalancedAllocation" => {
                self.balanced_resources = weighted(&arguments["resources"]).unwrap_or(self.balanced_resources.clone());
            }
            "NodeResourcesFit" => {
                let names = |field: &str| -> Vec<String> {
                    let list = arguments[field].as_array().into_iter().flatten();
                    list.filter_map(|n| n.as_str().map(str::to_owned)).collect()
                };
                self.ignored_resources = names("ignoredResources");
                self.ignored_resource_groups = names("ignoredResourceGroups");
                let given = &arguments["scoringStrategy"];
                let shape = given["requestedToCapacityRatio"]["shape"].as_array().into_iter().flatten();
                let shape = shape.map(|p| (p["utilization"].as_i64().unwrap_or(0), p["score"].as_i64().unwrap_or(0)));
                self.scoring.strategy = match text(given, "type").unwrap_or("LeastAllocated") {
                    "LeastAllocated" => Strategy::LeastAllocated,
                    "MostAllocated" => Strategy::MostAllocated,
                    "RequestedToCapacityRatio" => Strategy::RequestedToCapacityRatio(shape.collect()),
                    other => {
                        return invalid(format!("{path}.scoringStrategy.type"), format!("{other:?} is no strategy"));
                    }
                };
                self.scoring.resources = weighted(&given["resources"]).unwrap_or(self.scoring.resources.clone());
            }
            "PodTopologySpread" => {
                let constraints = arguments["defaultConstraints"].as_array().into_iter().flatten();
                let constraints: Vec<SpreadConstraint> = constraints
                    .map(|c| SpreadConstraint {
                        max_skew: c["maxSkew"].as_i64().unwrap_or(1),
                        topology_key: text(c, "topologyKey").unwrap_or_default().into(),
                        hard: text(c, "whenUnsatisfiable") == Some("DoNotSchedule"),
                        selector: Default::default(),
                        min_domains: 1,
                        honor_affinity: true,
                        honor_taints: false,
                    })
                    .collect();
                // `List` without constraints spreads nothing; the default are the system's constraints.
                if text(arguments, "defaultingType") == Some("List") || !constraints.is_empty() {
                    self.default_spread = Some(constraints);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn weighted(list: &Value) -> Option<Weighted> {
    let list = list.as_array().filter(|l| !l.is_empty())?;
    Some(list.iter().filter_map(|r| Some((text(r, "name")?.to_owned(), r["weight"].as_i64().unwrap_or(1)))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_configuration_of_upstream_is_understood() {
        let config = Config::from_value(&json!({
            "apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
            "leaderElection": {"leaseDuration": "30s"}, "podMaxBackoffSeconds": 20,
            "profiles": [{"schedulerName": "packed",
                "plugins": {"score": {"disabled": [{"name": "ImageLocality"}], "enabled": [{"name": "NodeAffinity", "weight": 7}]}},
                "pluginConfig": [{"name": "NodeResourcesFit", "args": {"scoringStrategy": {"type": "MostAllocated"}}}]}],
        }))
        .expect("it is valid");
        let profile = &config.profiles[0];
        assert_eq!(profile.scheduler_name, "packed");
        assert_eq!(profile.disabled, [("ImageLocality".to_owned(), "score".to_owned())]);
        assert_eq!(profile.weights, [("NodeAffinity".to_owned(), 7)]);
        assert!(matches!(profile.scoring.strategy, Strategy::MostAllocated));
        assert_eq!(config.leader_election.map(|e| e.lease_duration), Some(Duration::from_secs(30)));
        assert_eq!(config.backoff_max, Duration::from_secs(20));
        assert!(Config::from_value(&json!({"kind": "Pod"})).is_err());
    }
}
