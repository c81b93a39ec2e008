//! Pods keep to the Pod Security level of their namespace (upstream: `pod-security-admission`).
//!
//! Labels of a namespace say for each mode which level of which version holds: `enforce` refuses, `warn` warns, `audit`
//! is for the audit log. Without labels everything is privileged.

mod checks;

use super::{Attributes, Operation, Plugin};
use crate::objects::Objects;
use async_trait::async_trait;
use coxswain_api::field::{Error, ErrorList, Path};
use coxswain_api::{Status, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// So many pods of a namespace are checked when its level is raised.
const PODS_MAX: usize = 3000;

/// Subresources of pods that cannot make a pod less secure.
const HARMLESS: [&str; 8] = ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "privileged" => Some(Level::Privileged),
            "baseline" => Some(Level::Baseline),
            "restricted" => Some(Level::Restricted),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        }
    }
}

/// A level in the form it had in one minor version; none is the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standard {
    level: Level,
    minor: Option<u32>,
}

impl std::fmt::Display for Standard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.minor {
            Some(minor) => write!(f, "{}:v1.{minor}", self.level.name()),
            None => write!(f, "{}:latest", self.level.name()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Policy {
    enforce: Standard,
    warn: Standard,
}

impl Policy {
    /// The policy of a namespace, and what is wrong with its labels.
    fn of(namespace: &Value) -> (Self, ErrorList) {
        let labels = &namespace["metadata"]["labels"];
        let mut errors = ErrorList::new();
        let mut mode = |name: &str, wrong: Level| {
            let mut standard = Standard { level: Level::Privileged, minor: None };
            let mut invalid = |label: &str, value: &str, why: &str| {
                let path = Path::new("metadata").child("labels").key(label);
                errors.push(Error::invalid(&path, value, why));
            };
            let label = format!("pod-security.kubernetes.io/{name}");
            if let Some(value) = labels[&label].as_str() {
                standard.level = Level::parse(value).unwrap_or_else(|| {
                    invalid(&label, value, "must be one of privileged, baseline, restricted");
                    wrong
                });
            }
            let label = format!("{label}-version");
            if let Some(value) = labels[&label].as_str().filter(|v| *v != "latest") {
                let plain = |m: &&str| *m == "0" || !m.starts_with('0');
                standard.minor = value.strip_prefix("v1.").filter(plain).and_then(|m| m.parse().ok());
                if standard.minor.is_none() {
                    invalid(&label, value, "must be \"latest\" or \"v1.x\"");
                }
            }
            standard
        };
        // A wrong label is taken as strict where it refuses, and as none where it only tells.
        let enforce = mode("enforce", Level::Restricted);
        mode("audit", Level::Privileged);
        let warn = mode("warn", Level::Privileged);
        (Self { enforce, warn }, errors)
    }
}

pub struct PodSecurity {
    pub objects: Arc<dyn Objects>,
}

impl PodSecurity {
    async fn policy(&self, namespace: &str) -> Result<Policy, Status> {
        let found = match self.objects.get("", "namespaces", "", namespace) {
            Some(found) => Some(found),
            None => self.objects.get_consistent("", "namespaces", "", namespace).await?,
        };
        let found = found.ok_or_else(|| Status::internal(format!("failed to lookup namespace {namespace}")))?;
        Ok(Policy::of(&found).0)
    }

    fn check_namespace(&self, attributes: &Attributes<'_>, namespace: &Value) -> Result<(), Status> {
        let name = namespace["metadata"]["name"].as_str().unwrap_or_default();
        let (policy, errors) = Policy::of(namespace);
        let invalid = || Err(Status::invalid("", "Namespace", name, &errors));
        let Some(old) = attributes.old.filter(|_| attributes.operation == Operation::Update) else {
            return if errors.is_empty() { Ok(()) } else { invalid() };
        };
        let (before, old_errors) = Policy::of(old);
        let texts = |list: &ErrorList| list.iter().map(Error::to_string).collect::<Vec<_>>();
        if !errors.is_empty() && texts(&errors) != texts(&old_errors) {
            return invalid();
        }
        let (new, was) = (policy.enforce, before.enforce);
        let relaxed = new.minor == was.minor && new.level <= was.level;
        if new != was && new.level != Level::Privileged && !relaxed {
            for warning in self.violations(name, new) {
                attributes.ctx.warnings.add(warning);
            }
        }
        Ok(())
    }

    /// What of the pods that are there violates a level that is about to hold.
    fn violations(&self, namespace: &str, standard: Standard) -> Vec<String> {
        let pods = self.objects.list("", "pods", Some(namespace));
        let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
        for pod in pods.iter().take(PODS_MAX) {
            let reasons: Vec<_> = checks::evaluate(standard.level, standard.minor, &pod["metadata"], &pod["spec"])
                .into_iter()
                .map(|v| v.reason)
                .collect();
            if !reasons.is_empty() {
                let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                // Pods come in the order of their names: the first is the one named.
                found.entry(reasons.join(", ")).or_insert((name, 0)).1 += 1;
            }
        }
        let mut warnings = Vec::new();
        if pods.len() > PODS_MAX {
            warnings.push(format!(
                "new PodSecurity enforce level only checked against the first {PODS_MAX} of {} existing pods",
                pods.len()
            ));
        }
        if !found.is_empty() {
            warnings.push(format!(
                "existing pods in namespace {} violate the new PodSecurity enforce level {}",
                coxswain_api::field::go_quote(namespace),
                coxswain_api::field::go_quote(&standard.to_string())
            ));
        }
        let mut lines: Vec<String> = found
            .into_iter()
            .map(|(reasons, (first, count))| match count {
                1 => format!("{first}: {reasons}"),
                2 => format!("{first} (and 1 other pod): {reasons}"),
                n => format!("{first} (and {} other pods): {reasons}", n - 1),
            })
            .collect();
        lines.sort();
        warnings.extend(lines);
        warnings
    }

    async fn check_pod(&self, attributes: &Attributes<'_>, pod: &Value) -> Result<(), Status> {
        if let Some(old) = attributes.old.filter(|_| attributes.operation == Operation::Update)
            && !is_significant(pod, old)
        {
            return Ok(());
        }
        let policy = self.policy(attributes.namespace).await?;
        if let Some(detail) = violation(policy.enforce, &pod["metadata"], &pod["spec"]) {
            let standard = coxswain_api::field::go_quote(&policy.enforce.to_string());
            return Err(attributes.forbidden(format!("violates PodSecurity {standard}: {detail}")));
        }
        warn(attributes, policy.warn, &pod["metadata"], &pod["spec"]);
        Ok(())
    }
}

#[async_trait]
impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        let Some(object) = attributes.new_object() else { return Ok(()) };
        if attributes.is("", "namespaces") {
            return self.check_namespace(attributes, object);
        }
        if attributes.is_of("", "pods") {
            if HARMLESS.contains(&attributes.subresource) {
                return Ok(());
            }
            return self.check_pod(attributes, object).await;
        }
        if !attributes.subresource.is_empty() {
            return Ok(());
        }
        let template = match (attributes.group(), attributes.plural()) {
            ("", "podtemplates") => &object["template"],
            ("", "replicationcontrollers")
            | ("apps", "daemonsets" | "deployments" | "replicasets" | "statefulsets")
            | ("batch", "jobs") => &object["spec"]["template"],
            ("batch", "cronjobs") => &object["spec"]["jobTemplate"]["spec"]["template"],
            _ => return Ok(()),
        };
        if template.is_object() {
            // What makes pods is only warned of: its pods are checked when they come.
            let policy = self.policy(attributes.namespace).await?;
            warn(attributes, policy.warn, &template["metadata"], &template["spec"]);
        }
        Ok(())
    }
}

fn violation(standard: Standard, metadata: &Value, spec: &Value) -> Option<String> {
    let found = checks::evaluate(standard.level, standard.minor, metadata, spec);
    let texts: Vec<String> = found.into_iter().map(|v| format!("{} ({})", v.reason, v.detail)).collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

fn warn(attributes: &Attributes<'_>, standard: Standard, metadata: &Value, spec: &Value) {
    if let Some(detail) = violation(standard, metadata, spec) {
        let standard = coxswain_api::field::go_quote(&standard.to_string());
        attributes.ctx.warnings.add(format!("would violate PodSecurity {standard}: {detail}"));
    }
}

/// Whether an update changes anything that a level looks at: images, containers, and the annotations of old.
fn is_significant(pod: &Value, old: &Value) -> bool {
    let annotation = |o: &Value, key: &str| o["metadata"]["annotations"][key].clone();
    let changed = |key: &str| annotation(pod, key) != annotation(old, key);
    let list = |o: &'_ Value, kind: &str| o["spec"][kind].as_array().cloned().unwrap_or_default();
    if changed("seccomp.security.alpha.kubernetes.io/pod") {
        return true;
    }
    let container_changed = |new: &Value, old: &Value| {
        let name = new["name"].as_str().unwrap_or_default();
        new["image"] != old["image"]
            || changed(&format!("container.seccomp.security.alpha.kubernetes.io/{name}"))
            || changed(&format!("container.apparmor.security.beta.kubernetes.io/{name}"))
    };
    for kind in ["containers", "initContainers"] {
        let (new, old) = (list(pod, kind), list(old, kind));
        if new.len() != old.len() || new.iter().zip(&old).any(|(n, o)| container_changed(n, o)) {
            return true;
        }
    }
    let before = list(old, "ephemeralContainers");
    list(pod, "ephemeralContainers")
        .iter()
        .any(|new| before.iter().find(|o| o["name"] == new["name"]).is_none_or(|old| container_changed(new, old)))
}
