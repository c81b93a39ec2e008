//! What the scheduler keeps of a pod: a projection in which selectors are compiled and requests summed.

use std::hash::{DefaultHasher, Hash, Hasher};

use coxswain_client::ObjectKey;
use coxswain_client::k8s_openapi::api::core::v1::{
    Affinity, NodeSelectorTerm, Pod, PodAffinityTerm, PodSpec, PodTemplateSpec, Toleration,
};

use crate::resources::{self, Resources};
use crate::selector::{Labels, NodeTerm, Selector};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    pub ip: Box<str>,
    pub protocol: Box<str>,
    pub port: i32,
}

impl HostPort {
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = |ip: &str| ip == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(&self.ip) || any(&other.ip))
    }
}

/// A term of pod affinity or anti-affinity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodTerm {
    pub selector: Selector,
    namespaces: Box<[Box<str>]>,
    pub namespace_selector: Selector,
    pub topology_key: Box<str>,
    /// Zero for a required term.
    pub weight: i64,
}

impl PodTerm {
    fn new(term: &PodAffinityTerm, namespace: &str, weight: i32) -> Self {
        let named = term.namespaces.as_deref().unwrap_or_default();
        let namespaces = if named.is_empty() && term.namespace_selector.is_none() {
            [namespace.into()].into()
        } else {
            named.iter().map(|n| n.as_str().into()).collect()
        };
        Self {
            selector: Selector::new(term.label_selector.as_ref()),
            namespaces,
            namespace_selector: Selector::new(term.namespace_selector.as_ref()),
            topology_key: term.topology_key.as_str().into(),
            weight: i64::from(weight),
        }
    }

    /// Whether a pod is meant; `namespace_labels` are those of the pod's namespace.
    pub fn matches(&self, pod: &PodInfo, namespace_labels: &Labels) -> bool {
        (self.namespaces.iter().any(|n| **n == *pod.key.namespace) || self.namespace_selector.matches(namespace_labels))
            && self.selector.matches(&pod.labels)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tolerance {
    pub key: Box<str>,
    pub operator: Box<str>,
    pub value: Box<str>,
    pub effect: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpreadConstraint {
    pub max_skew: i64,
    pub topology_key: Box<str>,
    /// Whether nodes that would exceed the skew are ruled out rather than scored lower.
    pub hard: bool,
    pub selector: Selector,
    pub min_domains: i64,
    pub honor_affinity: bool,
    pub honor_taints: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    pub name: Box<str>,
    /// Made for the pod by the controller of ephemeral volumes.
    pub ephemeral: bool,
}

/// All that decides where a pod may go, and nothing else: pods of one template have equal specs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Spec {
    pub requests: Resources,
    pub requests_scored: Resources,
    pub ports: Vec<HostPort>,
    pub node_selector: Selector,
    pub node_terms: Option<Vec<NodeTerm>>,
    pub preferred_node_terms: Vec<(i64, NodeTerm)>,
    pub tolerations: Vec<Tolerance>,
    pub affinity: Vec<PodTerm>,
    pub anti_affinity: Vec<PodTerm>,
    pub preferred_affinity: Vec<PodTerm>,
    pub preferred_anti_affinity: Vec<PodTerm>,
    pub spread: Vec<SpreadConstraint>,
    pub images: Vec<Box<str>>,
    pub claims: Vec<Claim>,
    /// Whether it wants devices by resource claims.
    pub wants_devices: bool,
    pub node_name: Box<str>,
}

impl Spec {
    pub fn has_affinity(&self) -> bool {
        !(self.affinity.is_empty()
            && self.anti_affinity.is_empty()
            && self.preferred_affinity.is_empty()
            && self.preferred_anti_affinity.is_empty())
    }
}

/// The PodScheduled condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scheduled {
    pub status: Box<str>,
    pub reason: Box<str>,
    pub message: Box<str>,
    pub observed_generation: Option<i64>,
}

#[derive(Clone, Debug, Default)]
pub struct PodInfo {
    pub key: ObjectKey,
    pub uid: Box<str>,
    pub resource_version: Box<str>,
    pub generation: Option<i64>,
    pub labels: Labels,
    pub owner: Option<(Box<str>, Box<str>)>,
    pub scheduler_name: Box<str>,
    pub priority: i32,
    pub never_preempts: bool,
    pub created_ns: i128,
    pub started_ns: Option<i128>,
    pub gates: Vec<Box<str>>,
    pub nominated_node: Box<str>,
    pub finished: bool,
    pub deleting: bool,
    pub scheduled: Option<Scheduled>,
    pub spec: Spec,
    /// Equal for pods that every plugin treats alike.
    pub class: u64,
}

impl PodInfo {
    pub fn new(pod: Pod) -> Self {
        let (requests, requests_scored) = resources::of_pod(&pod);
        let Pod { metadata, spec, status } = pod;
        let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let name = metadata.name.clone().unwrap_or_default();
        let condition = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled");
        let owner = metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true));
        let affinity = spec.affinity.clone().unwrap_or_default();
        let mut info = Self {
            uid: metadata.uid.clone().unwrap_or_default().into(),
            resource_version: metadata.resource_version.clone().unwrap_or_default().into(),
            generation: metadata.generation,
            labels: Labels::new(metadata.labels.as_ref()),
            owner: owner.map(|o| (o.kind.as_str().into(), o.name.as_str().into())),
            scheduler_name: spec.scheduler_name.clone().unwrap_or_default().into(),
            priority: spec.priority.unwrap_or(0),
            never_preempts: spec.preemption_policy.as_deref() == Some("Never"),
            created_ns: metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_nanosecond()),
            started_ns: status.start_time.as_ref().map(|t| t.0.as_nanosecond()),
            gates: spec.scheduling_gates.iter().flatten().map(|g| g.name.as_str().into()).collect(),
            nominated_node: status.nominated_node_name.clone().unwrap_or_default().into(),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            deleting: metadata.deletion_timestamp.is_some(),
            scheduled: condition.map(|c| Scheduled {
                status: c.status.as_str().into(),
                reason: c.reason.clone().unwrap_or_default().into(),
                message: c.message.clone().unwrap_or_default().into(),
                observed_generation: c.observed_generation,
            }),
            spec: Spec {
                requests,
                requests_scored,
                ports: ports(&spec),
                node_selector: Selector::exact(spec.node_selector.as_ref()),
                tolerations: spec.tolerations.iter().flatten().map(tolerance).collect(),
                spread: spread(&spec, metadata.labels.as_ref()),
                images: spec.init_containers.iter().flatten().chain(&spec.containers).filter_map(image).collect(),
                claims: claims(&spec, &name),
                wants_devices: spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()),
                node_name: spec.node_name.clone().unwrap_or_default().into(),
                ..affinities(&affinity, &namespace)
            },
            key: ObjectKey::new(namespace, name),
            class: 0,
        };
        let mut hasher = DefaultHasher::new();
        (&info.key.namespace, &info.labels, &info.owner, &info.priority).hash(&mut hasher);
        info.spec.hash(&mut hasher);
        info.class = hasher.finish();
        info
    }

    pub fn node(&self) -> Option<&str> {
        Some(&*self.spec.node_name).filter(|n| !n.is_empty())
    }

    /// The pod as it will be once it runs on a node.
    pub fn on_node(&self, node: &str) -> Self {
        let mut pod = self.clone();
        pod.spec.node_name = node.into();
        pod
    }

    /// When it became a burden: pods of one priority that started later are less important.
    pub fn start_ns(&self) -> i128 {
        self.started_ns.unwrap_or(i128::MAX)
    }
}

/// What a template asks for, for those who must know without a pod.
pub fn of_template(template: &PodTemplateSpec, namespace: &str) -> PodInfo {
    let mut metadata = template.metadata.clone().unwrap_or_default();
    metadata.namespace = Some(namespace.to_owned());
    PodInfo::new(Pod { metadata, spec: template.spec.clone(), status: None })
}

fn affinities(affinity: &Affinity, namespace: &str) -> Spec {
    let mut spec = Spec::default();
    if let Some(node) = &affinity.node_affinity {
        let terms = |terms: &[NodeSelectorTerm]| terms.iter().map(NodeTerm::new).collect();
        spec.node_terms =
            node.required_during_scheduling_ignored_during_execution.as_ref().map(|s| terms(&s.node_selector_terms));
        for preferred in node.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
            let term = NodeTerm::new(&preferred.preference);
            spec.preferred_node_terms.push((i64::from(preferred.weight), term));
        }
    }
    if let Some(pods) = &affinity.pod_affinity {
        let required = pods.required_during_scheduling_ignored_during_execution.iter().flatten();
        spec.affinity = required.map(|t| PodTerm::new(t, namespace, 0)).collect();
        let preferred = pods.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        spec.preferred_affinity = preferred.map(|w| PodTerm::new(&w.pod_affinity_term, namespace, w.weight)).collect();
    }
    if let Some(pods) = &affinity.pod_anti_affinity {
        let required = pods.required_during_scheduling_ignored_during_execution.iter().flatten();
        spec.anti_affinity = required.map(|t| PodTerm::new(t, namespace, 0)).collect();
        let preferred = pods.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        spec.preferred_anti_affinity =
            preferred.map(|w| PodTerm::new(&w.pod_affinity_term, namespace, w.weight)).collect();
    }
    spec
}

fn ports(spec: &PodSpec) -> Vec<HostPort> {
    // Sidecars hold their ports as long as the pod runs; other init containers do not.
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = sidecars.chain(&spec.containers).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|p| {
            let port = p.host_port.filter(|port| *port > 0)?;
            let or = |text: &Option<String>, default: &str| {
                text.as_deref().filter(|t| !t.is_empty()).unwrap_or(default).into()
            };
            Some(HostPort { ip: or(&p.host_ip, "0.0.0.0"), protocol: or(&p.protocol, "TCP"), port })
        })
        .collect()
}

fn tolerance(toleration: &Toleration) -> Tolerance {
    let text = |t: &Option<String>| t.as_deref().unwrap_or_default().into();
    Tolerance {
        key: text(&toleration.key),
        operator: text(&toleration.operator),
        value: text(&toleration.value),
        effect: text(&toleration.effect),
    }
}

fn spread(spec: &PodSpec, labels: Option<&std::collections::BTreeMap<String, String>>) -> Vec<SpreadConstraint> {
    let constraints = spec.topology_spread_constraints.iter().flatten();
    constraints
        .map(|c| SpreadConstraint {
            max_skew: i64::from(c.max_skew),
            topology_key: c.topology_key.as_str().into(),
            hard: c.when_unsatisfiable == "DoNotSchedule",
            selector: Selector::new(c.label_selector.as_ref())
                .with_keys(c.match_label_keys.as_deref().unwrap_or_default(), labels),
            min_domains: i64::from(c.min_domains.unwrap_or(1)),
            honor_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: c.node_taints_policy.as_deref() == Some("Honor"),
        })
        .collect()
}

fn image(container: &coxswain_client::k8s_openapi::api::core::v1::Container) -> Option<Box<str>> {
    let image = container.image.as_deref()?;
    // A name without tag or digest means the latest.
    let tagged = image.rsplit('/').next().is_some_and(|last| last.contains(':')) || image.contains('@');
    Some(if tagged { image.into() } else { format!("{image}:latest").into() })
}

fn claims(spec: &PodSpec, pod: &str) -> Vec<Claim> {
    let volumes = spec.volumes.iter().flatten();
    volumes
        .filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some(Claim { name: claim.claim_name.as_str().into(), ephemeral: false }),
            (_, Some(_)) => Some(Claim { name: format!("{pod}-{}", volume.name).into(), ephemeral: true }),
            _ => None,
        })
        .collect()
}
