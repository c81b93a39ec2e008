//! LeaseCandidate: who stands for election as holder of a lease (upstream: `pkg/registry/coordination/leasecandidate`,
//! `ValidateLeaseCandidate`).

use super::lease::{self, OLDEST};
use crate::registry::checks;
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, names};
use semver::Version;
use std::cmp::Ordering;

pub struct LeaseCandidates;

impl Resource for LeaseCandidates {
    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        check_spec(&View::root(object).child("spec"))
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let [spec, before] = [object, old].map(|o| View::root(o).child("spec"));
        let mut errors = check_spec(&spec);
        checks::immutable_text(&spec.child("leaseName"), &before.child("leaseName"), &mut errors);
        errors
    }

    fn validate_name(&self, name: &str, _prefix: bool) -> Vec<String> {
        names::config_map_key(name)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn restricts_finalizers(&self) -> bool {
        false
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: false, whole_first: false }
    }
}

fn check_spec(spec: &View<'_>) -> ErrorList {
    let mut errors = ErrorList::new();
    let [lease, binary, emulation, strategy] =
        ["leaseName", "binaryVersion", "emulationVersion", "strategy"].map(|field| spec.child(field));
    checks::required(&lease, &mut errors);
    let emulated = version(&emulation, &mut errors);
    checks::required(&binary, &mut errors);
    let built = version(&binary, &mut errors);
    if !binary.is_empty() && !emulation.is_empty() && built.cmp_precedence(&emulated) == Ordering::Less {
        let why = "must be greater than or equal to `emulationVersion`";
        errors.push(Error::invalid(binary.path(), binary.str(), why));
    }
    checks::required(&strategy, &mut errors);
    if strategy.str() == OLDEST && emulated.cmp_precedence(&NO_VERSION) == Ordering::Equal {
        let why = format!("must be specified when `strategy` is '{OLDEST}'");
        errors.push(Error::required(emulation.path(), why));
    }
    if !strategy.is_empty() {
        lease::strategy(&strategy, &mut errors);
    }
    errors
}

const NO_VERSION: Version = Version::new(0, 0, 0);

/// The version that a text says, and the lowest if it says none.
fn version(view: &View<'_>, errors: &mut ErrorList) -> Version {
    if view.is_empty() {
        return NO_VERSION;
    }
    Version::parse(view.str()).unwrap_or_else(|_| {
        errors.push(Error::invalid(view.path(), view.str(), "must be a valid semantic version"));
        NO_VERSION
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    #[test]
    fn a_candidate_emulates_no_later_version_than_its_own() {
        let errors_of = |binary: &str, emulation: &str, strategy: &str| -> Vec<String> {
            let spec = json!({"spec": {"leaseName": "l", "binaryVersion": binary, "emulationVersion": emulation, "strategy": strategy}});
            check_spec(&View::root(&spec).child("spec")).iter().map(ToString::to_string).collect()
        };
        assert_eq!(errors_of("1.36.0", "1.35.0", OLDEST), [""; 0]);
        assert_eq!(errors_of("1.36.0", "", "a.b/c"), [""; 0]);
        assert_eq!(
            errors_of("1.35.0", "1.36.0", "Other"),
            [
                "spec.binaryVersion: Invalid value: \"1.35.0\": must be greater than or equal to `emulationVersion`",
                "spec.strategy.strategy: Unsupported value: \"Other\": supported values: \"OldestEmulationVersion\"",
            ]
        );
        assert_eq!(
            errors_of("v1", "", OLDEST),
            [
                "spec.binaryVersion: Invalid value: \"v1\": must be a valid semantic version",
                "spec.emulationVersion: Required value: must be specified when `strategy` is 'OldestEmulationVersion'",
            ]
        );
    }
}
