//! Which ReplicaSet is which revision, and the annotations that say so.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;

use super::POD_TEMPLATE_HASH;
use super::rollout::{self, Sets};
use crate::common::owners;

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// The former revisions of a ReplicaSet are remembered up to this many characters.
const HISTORY_CHARS_MAX: usize = 2000;
/// Annotations of a Deployment that its ReplicaSets do not inherit.
const NOT_INHERITED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

/// The oldest ReplicaSet with the Deployment's template is the new one, all others are old.
pub(super) fn split(deployment: &Deployment, mut all: Vec<ReplicaSet>) -> Sets {
    all.sort_by(|a, b| {
        owners::created(&a.metadata)
            .cmp(&owners::created(&b.metadata))
            .then_with(|| a.metadata.name.cmp(&b.metadata.name))
    });
    let new = all.iter().position(|set| same_template(deployment, set)).map(|index| all.remove(index));
    Sets { new, old: all }
}

/// Whether a ReplicaSet is of the Deployment's template, but for the hash label.
pub(super) fn same_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let without_hash = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        let meta = template.metadata.get_or_insert_default();
        meta.creation_timestamp = None;
        if let Some(labels) = &mut meta.labels {
            labels.remove(POD_TEMPLATE_HASH);
            if labels.is_empty() {
                meta.labels = None;
            }
        }
        template
    };
    let wanted = deployment.spec.as_ref().map(|spec| without_hash(&spec.template));
    let found = set.spec.as_ref().and_then(|spec| spec.template.as_ref()).map(without_hash);
    wanted == found
}

pub(super) fn of(set: &ReplicaSet) -> i64 {
    owners::annotation(&set.metadata, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

pub(super) fn max(sets: &[ReplicaSet]) -> i64 {
    sets.iter().map(of).max().unwrap_or(0)
}

/// Writes the revision and what the Deployment's annotations say to the new ReplicaSet; says whether that changed it.
pub(super) fn annotate(deployment: &Deployment, set: &mut ReplicaSet, revision: i64, exists: bool) -> bool {
    let mut changed = false;
    let annotations = set.metadata.annotations.get_or_insert_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_INHERITED.contains(&key.as_str()) && annotations.get(key) != Some(value) {
            annotations.insert(key.clone(), value.clone());
            changed = true;
        }
    }
    let before = annotations.get(REVISION).cloned();
    let before_number: i64 = before.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0);
    if before_number < revision {
        annotations.insert(REVISION.to_owned(), revision.to_string());
        changed = true;
        if let Some(before) = before.filter(|before| !before.is_empty()) {
            let history = annotations.get(REVISION_HISTORY).cloned().unwrap_or_default();
            if let Some(history) = extend_history(&history, &before) {
                annotations.insert(REVISION_HISTORY.to_owned(), history);
            }
        }
    }
    // A new ReplicaSet gets its sizes now, an existing one when it is scaled.
    (!exists && annotate_sizes(deployment, set)) || changed
}

/// The former revisions with one more, the oldest left out where it becomes too long.
fn extend_history(history: &str, revision: &str) -> Option<String> {
    if history.is_empty() {
        return Some(revision.to_owned());
    }
    let mut kept: Vec<&str> = history.split(',').collect();
    let mut length = history.len() + revision.len() + 1;
    while length > HISTORY_CHARS_MAX && !kept.is_empty() {
        length -= kept.remove(0).len() + 1;
    }
    if length > HISTORY_CHARS_MAX {
        return None;
    }
    kept.push(revision);
    Some(kept.join(","))
}

/// Notes the Deployment's size on a ReplicaSet: by it a later scaling is recognised and shared out.
pub(super) fn annotate_sizes(deployment: &Deployment, set: &mut ReplicaSet) -> bool {
    let desired = rollout::replicas(deployment);
    let most = desired + rollout::max_surge(deployment);
    let annotations = set.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (key, value) in [(DESIRED_REPLICAS, desired.to_string()), (MAX_REPLICAS, most.to_string())] {
        if annotations.get(key) != Some(&value) {
            annotations.insert(key.to_owned(), value);
            changed = true;
        }
    }
    changed
}

/// Tells the Deployment which revision it is at; says whether it did not know.
pub(super) fn set_on_deployment(deployment: &mut Deployment, set: &ReplicaSet) -> bool {
    let revision = owners::annotation(&set.metadata, REVISION).unwrap_or_default().to_owned();
    let annotations = deployment.metadata.annotations.get_or_insert_default();
    if annotations.get(REVISION) == Some(&revision) {
        return false;
    }
    annotations.insert(REVISION.to_owned(), revision);
    true
}

/// The oldest of the old ReplicaSets beyond the history limit, as far as they are empty and settled.
pub(super) fn beyond_history(deployment: &Deployment, old: &[ReplicaSet]) -> Vec<ReplicaSet> {
    let limit = match deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit) {
        None | Some(i32::MAX) => return Vec::new(),
        Some(limit) => limit.max(0) as usize,
    };
    let mut cleanable: Vec<&ReplicaSet> = old.iter().filter(|set| !owners::is_deleting(&set.metadata)).collect();
    if cleanable.len() <= limit {
        return Vec::new();
    }
    cleanable.sort_by_key(|set| (of(set), owners::created(&set.metadata)));
    cleanable
        .iter()
        .take(cleanable.len() - limit)
        .filter(|set| {
            let status = set.status.clone().unwrap_or_default();
            status.replicas == 0 && rollout::size(set) == 0 && set.metadata.generation <= status.observed_generation
        })
        .map(|set| (*set).clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_drops_its_oldest_revisions_when_full() {
        assert_eq!(extend_history("", "1").as_deref(), Some("1"));
        assert_eq!(extend_history("1", "3").as_deref(), Some("1,3"));
        let long = "1234567,".repeat(249) + "89012345";
        let extended = extend_history(&long, "77").unwrap();
        assert!(extended.len() <= HISTORY_CHARS_MAX && extended.ends_with(",77"));
    }
}
