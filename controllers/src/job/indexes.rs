//! Indexed jobs: each index is to succeed once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use super::INDEX;
use super::plan::{Verdict, View};
use crate::common::owners;

/// A set of indexes, written as `1,3-5,7`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes(pub BTreeSet<u32>);

impl Indexes {
    /// Reads a set; what is not a number below `end` is left out.
    pub(super) fn parse(text: &str, end: u32) -> Self {
        let mut indexes = BTreeSet::new();
        for part in text.split(',') {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(from), Ok(to)) = (from.parse::<u32>(), to.parse::<u32>()) {
                indexes.extend(from..=to.min(end.saturating_sub(1)));
            }
        }
        indexes.retain(|index| *index < end);
        Self(indexes)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        self.0.contains(&index)
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut first = true;
        while let Some(from) = rest.next() {
            let mut to = from;
            while rest.next_if(|next| *next == to + 1).is_some() {
                to += 1;
            }
            let comma = if first { "" } else { "," };
            first = false;
            match to - from {
                0 => write!(f, "{comma}{from}")?,
                1 => write!(f, "{comma}{from},{to}")?,
                _ => write!(f, "{comma}{from}-{to}")?,
            }
        }
        Ok(())
    }
}

pub(super) fn index_of(pod: &Pod) -> Option<u32> {
    owners::annotation(&pod.metadata, INDEX)?.parse().ok()
}

/// How often an index has failed, as its pods remember.
pub(super) fn failures_of(pod: &Pod) -> u32 {
    number(pod, FAILURE_COUNT)
}

/// The same with the failures that do not count.
pub(super) fn all_failures_of(pod: &Pod) -> u32 {
    number(pod, FAILURE_COUNT).saturating_add(number(pod, IGNORED_FAILURE_COUNT))
}

fn number(pod: &Pod, annotation: &str) -> u32 {
    owners::annotation(&pod.metadata, annotation).and_then(|text| text.parse().ok()).unwrap_or(0)
}

const FAILURE_COUNT: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED_FAILURE_COUNT: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// The pod of an index: named after it, and told of it.
pub(super) fn pod_of(pod: &Pod, job: &str, index: u32, view: &View) -> Pod {
    let mut pod = pod.clone();
    let name = format!("{job}-{index}");
    pod.metadata.generate_name = Some(format!("{name}-"));
    let annotations = pod.metadata.annotations.get_or_insert_with(BTreeMap::new);
    annotations.insert(INDEX.to_owned(), index.to_string());
    if view.backoff_limit_per_index.is_some() {
        let (mut failures, mut ignored) = (0, 0);
        if let Some(replaced) = view.to_replace.get(&index) {
            (failures, ignored) = (failures_of(replaced), number(replaced, IGNORED_FAILURE_COUNT));
            match view.verdict(replaced) {
                Verdict::Ignored => ignored += 1,
                _ => failures += 1,
            }
        }
        annotations.insert(FAILURE_COUNT.to_owned(), failures.to_string());
        if ignored > 0 {
            annotations.insert(IGNORED_FAILURE_COUNT.to_owned(), ignored.to_string());
        }
    }
    pod.metadata.labels.get_or_insert_with(BTreeMap::new).insert(INDEX.to_owned(), index.to_string());
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(name);
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            let variables = container.env.get_or_insert_default();
            if !variables.iter().any(|variable| variable.name == "JOB_COMPLETION_INDEX") {
                variables.push(EnvVar {
                    name: "JOB_COMPLETION_INDEX".to_owned(),
                    value: None,
                    value_from: Some(EnvVarSource {
                        field_ref: Some(ObjectFieldSelector {
                            api_version: None,
                            field_path: format!("metadata.labels['{INDEX}']"),
                        }),
                        ..EnvVarSource::default()
                    }),
                });
            }
        }
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_three_and_more_are_written_as_ranges() {
        let indexes = Indexes::parse("1,3-5,7,8,99", 10);
        assert_eq!(indexes.to_string(), "1,3-5,7,8");
        assert_eq!(indexes.len(), 6);
    }
}
