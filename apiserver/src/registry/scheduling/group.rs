//! What a PodGroup and the templates of a Workload have in common, and which of it needs a feature gate (upstream: the rules
//! that `scheduling/v1alpha2` declares, and `dropDisabled…Fields` of both strategies).

use crate::registry::declarative::Field;
use coxswain_api::Value;
use coxswain_api::features::Feature;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::names;

const CLAIMS_MAX: usize = 4;
const PRIORITY_MAX: i64 = super::USER_PRIORITY_MAX;
const PRIORITY_MIN: i64 = i32::MIN as i64;

/// The gates that some of the fields need.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gates {
    pub topology: bool,
    pub claims: bool,
    pub preemption: bool,
}

impl Gates {
    pub fn of_process() -> Self {
        Self {
            topology: Feature::TopologyAwareWorkloadScheduling.enabled(),
            claims: Feature::DRAWorkloadResourceClaims.enabled(),
            preemption: Feature::WorkloadAwarePreemption.enabled(),
        }
    }
}

/// A template may still be changed where a group may not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Template,
    Group,
}

/// Takes away what needs a gate that is shut, unless it was there before.
pub(super) fn drop_disabled(group: &mut Value, old: Option<&Value>, gates: Gates) {
    let Some(group) = group.as_object_mut() else { return };
    let in_use = |field: &str| {
        let old = old.and_then(|old| old.get(field));
        old.is_some_and(|v| !(v.is_null() || v == "" || v.as_array().is_some_and(Vec::is_empty)))
    };
    for (field, is_open) in [
        ("schedulingConstraints", gates.topology),
        ("resourceClaims", gates.claims),
        ("disruptionMode", gates.preemption),
        ("priorityClassName", gates.preemption),
        ("priority", gates.preemption),
    ] {
        if !is_open && !in_use(field) {
            group.remove(field);
        }
    }
}

pub(super) fn check(group: &Field<'_>, kind: Kind, gates: Gates, errors: &mut ErrorList) {
    let may_not_change = |field: &Field<'_>, errors: &mut ErrorList| kind == Kind::Template || field.immutable(errors);
    if let Some(policy) = group.changed_child("schedulingPolicy")
        && may_not_change(&policy, errors)
    {
        check_policy(&policy, errors);
    }
    if let Some(constraints) = group.changed_child("schedulingConstraints")
        && is_allowed(&constraints, gates.topology, errors)
        && may_not_change(&constraints, errors)
        && let Some(topology) = constraints.changed_child("topology")
        && topology.max_items(1, errors)
    {
        let keys = topology.items(None);
        keys.iter().for_each(|item| item.child("key").required_text(names::qualified_name, errors));
    }
    if let Some(claims) = group.changed_child("resourceClaims") {
        let may_change = claims.immutable(errors);
        if claims.max_items(CLAIMS_MAX, errors) && may_change {
            check_claims(&claims, errors);
        }
    }
    if let Some(mode) = group.changed_child("disruptionMode")
        && is_allowed(&mode, gates.preemption, errors)
    {
        let is_missing = kind == Kind::Group && !mode.exists();
        if is_missing {
            errors.push(Error::required(mode.view().path(), ""));
        }
        if may_not_change(&mode, errors) && mode.exists() && !matches!(mode.view().str(), "Pod" | "PodGroup") {
            errors.push(Error::not_supported(mode.view().path(), mode.view().str(), &["Pod", "PodGroup"]));
        }
    }
    // An empty name of a class is none; an empty mode is one, and not allowed.
    if let Some(class) = group.changed_child("priorityClassName")
        && (gates.preemption || !class.view().is_empty())
        && is_allowed(&class, gates.preemption, errors)
        && may_not_change(&class, errors)
        && !class.view().is_empty()
    {
        class.form(long_name, errors);
    }
    if let Some(priority) = group.changed_child("priority")
        && is_allowed(&priority, gates.preemption, errors)
        && may_not_change(&priority, errors)
        && priority.exists()
    {
        priority.maximum(PRIORITY_MAX, errors);
        priority.minimum(PRIORITY_MIN, errors);
    }
}

/// A field whose gate is shut must be absent, and then nothing else is asked of it.
fn is_allowed(field: &Field<'_>, is_open: bool, errors: &mut ErrorList) -> bool {
    if !is_open && field.exists() {
        errors.push(Error::forbidden(field.view().path(), ""));
    }
    is_open
}

fn check_policy(policy: &Field<'_>, errors: &mut ErrorList) {
    policy.union(&["basic", "gang"], errors);
    let Some(gang) = policy.changed_child("gang").filter(Field::exists) else { return };
    let Some(count) = gang.changed_child("minCount") else { return };
    if count.view().i64() == 0 {
        errors.push(Error::required(count.view().path(), ""));
    } else {
        count.minimum(1, errors);
    }
}

fn check_claims(claims: &Field<'_>, errors: &mut ErrorList) {
    claims.unique("name", "io.k8s.api.scheduling.v1alpha2.PodGroupResourceClaim", errors);
    for claim in claims.items(Some("name")) {
        claim.union(&["resourceClaimName", "resourceClaimTemplateName"], errors);
        claim.child("name").required_text(short_name, errors);
        claim.child("resourceClaimName").optional_text(long_name, errors);
        claim.child("resourceClaimTemplateName").optional_text(long_name, errors);
    }
}

/// The status of the claims of a group names claims of its spec, each once.
pub(super) fn check_claim_statuses(statuses: &Field<'_>, errors: &mut ErrorList) {
    if !statuses.max_items(CLAIMS_MAX, errors) {
        return;
    }
    statuses.unique("name", "io.k8s.api.scheduling.v1alpha2.PodGroupResourceClaimStatus", errors);
    for status in statuses.items(Some("name")) {
        status.child("resourceClaimName").optional_text(long_name, errors);
    }
}

pub(super) fn names_a_claim(status: &View<'_>, spec: &View<'_>, errors: &mut ErrorList) {
    let name = status.child("name");
    if !spec.child("resourceClaims").items().any(|claim| claim.child("name").str() == name.str()) {
        let why = "must match the name of an entry in `spec.resourceClaims`";
        errors.push(Error::invalid(name.path(), name.str(), why));
    }
}

pub(super) fn short_name(text: &str) -> Vec<String> {
    names::dns1123_label(text, false)
}

pub(super) fn long_name(text: &str) -> Vec<String> {
    names::dns1123_subdomain(text, false)
}
