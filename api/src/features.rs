//! Feature gates (upstream: `component-base/featuregate` and the `kube_features.go` of Kubernetes and its API server).
//!
//! Every gate of upstream's is known by its stage and default, so that a command line is accepted or refused as upstream does.
//! Those that change what is done here are the variants of [`Feature`]; opening or shutting another one is reported as without effect.
//! Gates are set once, before a component starts, and hold for the whole process, as upstream's do.

use crate::field::go_quote;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::OnceLock;

/// A gate as a line of the table describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    pub name: &'static str,
    /// `Alpha`, `Beta`, `GA` or `Deprecated`.
    pub stage: &'static str,
    pub default: bool,
    /// Whether it stays at its default.
    pub locked: bool,
    needs: &'static str,
}

/// Every gate, sorted by name regardless of case.
pub fn all() -> impl Iterator<Item = Spec> {
    let lines = include_str!("../data/features.tsv").lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| {
        let mut columns = line.split('\t');
        let mut next = || columns.next().unwrap_or_default();
        Spec { name: next(), stage: next(), default: next() == "true", locked: next() == "locked", needs: next() }
    })
}

macro_rules! features {
    ($($name:ident),* $(,)?) => {
        /// A gate that decides about something here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Feature { $($name),* }

        impl Feature {
            const NAMES: &[&str] = &[$(stringify!($name)),*];
        }
    };
}

features! {
    APIResponseCompression,
    CBORServingAndStorage,
    ClusterTrustBundle,
    ClusterTrustBundleProjection,
    ContainerRestartRules,
    ContainerStopSignals,
    CoordinatedLeaderElection,
    CrossNamespaceVolumeDataSource,
    DRAConsumableCapacity,
    DRADeviceBindingConditions,
    DRADeviceTaints,
    DRAExtendedResource,
    DRAListTypeAttributes,
    DRANodeAllocatableResources,
    DRAPartitionableDevices,
    DRAPrioritizedList,
    DRAResourceClaimDeviceStatus,
    DRAWorkloadResourceClaims,
    DeploymentReplicaSetTerminatingReplicas,
    EnvFiles,
    GenericWorkload,
    HPAConfigurableTolerance,
    HPAScaleToZero,
    HostnameOverride,
    ImageVolumeWithDigest,
    InPlacePodLevelResourcesVerticalScaling,
    MatchLabelKeysInPodTopologySpread,
    MatchLabelKeysInPodTopologySpreadSelectorMerge,
    MaxUnavailableStatefulSet,
    NodeDeclaredFeatures,
    PodCertificateRequest,
    PodLevelResources,
    ResourceHealthStatus,
    ResourceHealthStatusMessage,
    StorageVersionMigrator,
    TaintTolerationComparisonOperators,
    TopologyAwareWorkloadScheduling,
    WatchList,
    WorkloadAwarePreemption,
}

impl Feature {
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// Whether the gate is open.
    pub fn enabled(self) -> bool {
        // Which are open by default is looked up once.
        let open = OPEN.get_or_init(|| Gates::default().open());
        open[self as usize]
    }
}

/// Whether the gate of this name is open in this process, for tables that name gates.
pub fn is_open(name: &str) -> bool {
    let gates = GATES.get_or_init(Gates::default);
    all().any(|spec| spec.name == name && gates.of(&spec))
}

static OPEN: OnceLock<Vec<bool>> = OnceLock::new();
static GATES: OnceLock<Gates> = OnceLock::new();

/// Gates that were set, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gates(BTreeMap<String, bool>);

/// A setting that upstream refuses, in its words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GateError(String);

/// Reads `--feature-gates`: `Name=true` by commas, each of which may be led by the component, which is `kube:`.
pub fn settings(values: &[impl AsRef<str>]) -> Result<BTreeMap<String, bool>, GateError> {
    let mut given = BTreeMap::new();
    for pair in values.iter().flat_map(|value| value.as_ref().split(',')).filter(|pair| !pair.is_empty()) {
        let pair = match pair.split_once(':') {
            Some(("kube", pair)) => pair,
            Some((component, _)) => return Err(GateError(format!("component not registered: {component}"))),
            None => pair,
        };
        let Some((name, value)) = pair.split_once('=') else {
            return Err(GateError(format!("missing bool value for {}", pair.trim())));
        };
        let (name, value) = (name.trim(), value.trim());
        let on = match value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
            "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
            _ => {
                let quoted = go_quote(value);
                return Err(GateError(format!(
                    "invalid value of {name}={value}, err: strconv.ParseBool: parsing {quoted}: invalid syntax"
                )));
            }
        };
        given.insert(name.to_owned(), on);
    }
    Ok(given)
}

impl Gates {
    /// Reads the values of `--feature-gates` alone.
    pub fn parse(values: &[&str]) -> Result<Self, GateError> {
        Self::new(settings(values)?)
    }

    /// Takes settings by name, `AllAlpha` and `AllBeta` among them, as a configuration file has them.
    pub fn new(given: BTreeMap<String, bool>) -> Result<Self, GateError> {
        let mut set = BTreeMap::new();
        let mut errors = Vec::new();
        for (group, stage) in [("AllAlpha", "Alpha"), ("AllBeta", "Beta")] {
            let Some(on) = given.get(group) else { continue };
            // One that is named beside it stays as it is named.
            let of_stage = all().filter(|spec| spec.stage == stage && !given.contains_key(spec.name));
            set.extend(of_stage.map(|spec| (spec.name.to_owned(), *on)));
        }
        for (name, on) in given.into_iter().filter(|(name, _)| !matches!(name.as_str(), "AllAlpha" | "AllBeta")) {
            match all().find(|spec| spec.name == name) {
                None => errors.push(format!("unrecognized feature gate: {name}")),
                Some(spec) if spec.locked && spec.default != on => errors
                    .push(format!("cannot set feature gate {name} to {on}, feature is locked to {}", spec.default)),
                Some(_) => drop(set.insert(name, on)),
            }
        }
        let gates = Self(set);
        if errors.is_empty() {
            errors.extend(all().filter(|spec| gates.of(spec)).filter_map(|spec| gates.lacks(&spec)));
        }
        match errors.as_slice() {
            [] => Ok(gates),
            [one] => Err(GateError(one.clone())),
            many => Err(GateError(format!("[{}]", many.join(", ")))),
        }
    }

    fn of(&self, spec: &Spec) -> bool {
        self.0.get(spec.name).copied().unwrap_or(spec.default)
    }

    /// Why a gate cannot be open beside others that are shut.
    fn lacks(&self, spec: &Spec) -> Option<String> {
        let is_shut = |name: &&str| all().find(|s| s.name == *name).is_some_and(|needed| !self.of(&needed));
        let shut: Vec<&str> = spec.needs.split(' ').filter(is_shut).collect();
        let name = spec.name;
        (!shut.is_empty())
            .then(|| format!("{name} is enabled, but depends on features that are disabled: [{}]", shut.join(" ")))
    }

    fn open(&self) -> Vec<bool> {
        let named = |name: &&str| all().find(|spec| spec.name == *name).is_some_and(|spec| self.of(&spec));
        Feature::NAMES.iter().map(named).collect()
    }

    /// What should be said of them: of those that will go away, and of those that change nothing here.
    pub fn warnings(&self) -> Vec<String> {
        let mut said = Vec::new();
        for spec in all() {
            let Some(on) = self.0.get(spec.name) else { continue };
            match spec.stage {
                "GA" => said.push(format!(
                    "setting GA feature gate {}={on}. It will be removed in a future release.",
                    spec.name
                )),
                "Deprecated" => said.push(format!(
                    "setting deprecated feature gate {}={on}. It will be removed in a future release.",
                    spec.name
                )),
                _ => {}
            }
            if *on != spec.default && !Feature::NAMES.contains(&spec.name) {
                said.push(format!("feature gate {}={on} has no effect here", spec.name));
            }
        }
        said
    }

    /// Makes them those of this process. Only the first call counts, and none after a gate was asked for.
    pub fn install(self) {
        let _ = OPEN.set(self.open());
        let _ = GATES.set(self);
    }
}

/// Every gate and whether it is open in this process, as `/metrics` tells of them.
pub fn metrics_text() -> String {
    let gates = GATES.get_or_init(Gates::default);
    let name = "kubernetes_feature_enabled";
    let help = "[BETA] This metric records the data about the stage and enablement of a k8s feature.";
    let mut out = format!("# HELP {name} {help}\n# TYPE {name} gauge\n");
    for spec in all() {
        // What is generally available has no stage.
        let stage = if spec.stage == "GA" { String::new() } else { spec.stage.to_uppercase() };
        let _ = writeln!(out, "{name}{{name=\"{}\",stage=\"{stage}\"}} {}", spec.name, u8::from(gates.of(&spec)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(value: &str) -> String {
        Gates::parse(&[value]).unwrap_err().to_string()
    }

    #[test]
    fn every_feature_is_a_gate_of_upstreams_that_can_be_changed() {
        for name in Feature::NAMES {
            assert!(all().any(|spec| spec.name == *name && !spec.locked), "{name}");
        }
        assert_eq!(Feature::CBORServingAndStorage.name(), "CBORServingAndStorage");
        for spec in all().filter(|spec| !spec.needs.is_empty()) {
            for needed in spec.needs.split(' ') {
                assert!(all().any(|other| other.name == needed), "{needed}");
            }
        }
    }

    #[test]
    fn wrong_settings_are_refused_in_upstreams_words() {
        assert_eq!(error("CBORServingAndStorage"), "missing bool value for CBORServingAndStorage");
        assert_eq!(
            error("CBORServingAndStorage=2"),
            "invalid value of CBORServingAndStorage=2, err: strconv.ParseBool: parsing \"2\": invalid syntax"
        );
        assert_eq!(error("Foo=true"), "unrecognized feature gate: Foo");
        assert_eq!(error("x:Foo=true"), "component not registered: x");
        assert_eq!(
            error("DynamicResourceAllocation=false"),
            "cannot set feature gate DynamicResourceAllocation to false, feature is locked to true"
        );
        assert_eq!(
            error("ClusterTrustBundleProjection=true"),
            "ClusterTrustBundleProjection is enabled, but depends on features that are disabled: [ClusterTrustBundle]"
        );
    }

    #[test]
    fn a_stage_is_opened_as_a_whole_but_for_those_that_are_named() {
        let gates = Gates::parse(&["AllAlpha=true", "kube:CBORServingAndStorage=false"]).unwrap();
        let of = |name: &str| gates.of(&all().find(|spec| spec.name == name).unwrap());
        assert!(of("ContainerStopSignals"));
        assert!(!of("CBORServingAndStorage"));
        assert!(!of("StorageVersionMigrator"), "a beta gate that is off by default");
    }

    #[test]
    fn what_changes_nothing_is_said() {
        let gates = Gates::parse(&["KMSv1=true,MutatingAdmissionPolicy=true"]).unwrap();
        assert_eq!(
            gates.warnings(),
            [
                "setting deprecated feature gate KMSv1=true. It will be removed in a future release.",
                "feature gate KMSv1=true has no effect here",
                "setting GA feature gate MutatingAdmissionPolicy=true. It will be removed in a future release.",
            ]
        );
    }
}
