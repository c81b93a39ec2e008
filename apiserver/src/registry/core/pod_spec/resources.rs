//! Amounts of resources: of containers, of pods, and their sums (upstream: `validateResourceRequirements`,
//! `component-helpers/resource`).

use super::Options;
use super::defaults::{none, supported_for_pod};
use crate::registry::checks;
use crate::registry::core::quantities;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorKind, ErrorList, View};
use coxswain_api::quantity::Quantity;
use std::collections::{BTreeMap, BTreeSet};

type Amounts = Vec<(String, Quantity)>;

fn amounts(container: &Value, list: &str) -> BTreeMap<String, Quantity> {
    let list = container.pointer(&format!("/resources/{list}")).and_then(Value::as_object);
    let parse = |(name, amount): (&String, &Value)| Some((name.clone(), Quantity::parse(amount.as_str()?).ok()?));
    list.into_iter().flatten().filter_map(parse).collect()
}

fn add(into: &mut BTreeMap<String, Quantity>, amounts: &BTreeMap<String, Quantity>) {
    for (name, amount) in amounts {
        into.entry(name.clone()).or_insert_with(none).add(amount);
    }
}

fn raise(into: &mut BTreeMap<String, Quantity>, amounts: &BTreeMap<String, Quantity>) {
    for (name, amount) in amounts {
        let have = into.entry(name.clone()).or_insert_with(none);
        if *amount > *have {
            *have = amount.clone();
        }
    }
}

/// What all containers together need at once: the sum of those that run, or what an init container needs while the
/// sidecars before it run, whichever is more.
pub fn aggregate(spec: &Value, list: &str) -> Amounts {
    let containers = |key: &str| spec.get(key).and_then(Value::as_array).into_iter().flatten();
    let mut sum = BTreeMap::new();
    for container in containers("containers") {
        add(&mut sum, &amounts(container, list));
    }
    let (mut sidecars, mut init) = (BTreeMap::new(), BTreeMap::new());
    for container in containers("initContainers") {
        let own = amounts(container, list);
        if container.get("restartPolicy").and_then(Value::as_str) == Some("Always") {
            add(&mut sum, &own);
            add(&mut sidecars, &own);
            raise(&mut init, &sidecars);
        } else {
            let mut needed = own;
            add(&mut needed, &sidecars);
            raise(&mut init, &needed);
        }
    }
    raise(&mut sum, &init);
    sum.into_iter().collect()
}

/// [`aggregate`] of the requests.
pub fn aggregate_requests(spec: &Value) -> Amounts {
    aggregate(spec, "requests")
}

/// What a container asks for. `claims` are the names that the pod declares.
pub(super) fn validate(resources: &View<'_>, claims: &BTreeSet<&str>, options: &Options, errors: &mut ErrorList) {
    validate_with(resources, false, claims, options, errors);
}

fn validate_with(
    resources: &View<'_>,
    of_pod: bool,
    claims: &BTreeSet<&str>,
    options: &Options,
    errors: &mut ErrorList,
) {
    let (limits, requests) = (resources.child("limits"), resources.child("requests"));
    let (mut compute, mut huge_pages) = (false, false);
    let mut check = |name: &str, amount: &View<'_>, errors: &mut ErrorList| {
        if of_pod {
            validate_pod_resource_name(name, amount, errors);
        } else {
            quantities::validate_container_resource_name(name, amount.path(), errors);
        }
        quantities::validate_quantity(name, amount, errors);
        compute |= matches!(name, "cpu" | "memory");
        huge_pages |= quantities::is_huge_page(name);
    };
    let divisible = |name: &str, amount: &View<'_>, errors: &mut ErrorList| {
        if quantities::is_huge_page(name) && !options.allow_indivisible_huge_pages && !is_multiple(name, amount) {
            let why = format!("{} is not positive integer multiple of {name}", amount.str());
            errors.push(Error::invalid(amount.path(), amount.str(), why));
        }
    };
    for (name, amount) in limits.entries() {
        check(name, &amount, errors);
        divisible(name, &amount, errors);
    }
    for (name, amount) in requests.entries() {
        check(name, &amount, errors);
        let limit = limits.child_named(name);
        let overcommit = quantities::overcommit_allowed(name);
        if limit.exists() {
            let (Ok(asked), Ok(most)) = (Quantity::parse(amount.str()), Quantity::parse(limit.str())) else { continue };
            if asked != most && !overcommit {
                let why = format!("must be equal to {name} limit of {most}");
                errors.push(Error::invalid(requests.path(), asked.to_string(), why));
            } else if asked > most {
                let why = format!("must be less than or equal to {name} limit of {most}");
                errors.push(Error::invalid(requests.path(), asked.to_string(), why));
            }
        } else if !overcommit {
            errors.push(Error::required(limits.path(), "Limit must be set for non overcommitable resources"));
        }
        divisible(name, &amount, errors);
    }
    if huge_pages && !compute {
        errors.push(Error::forbidden(resources.path(), "HugePages require cpu or memory"));
    }
    validate_claims(&resources.child("claims"), claims, errors);
}

fn is_multiple(name: &str, amount: &View<'_>) -> bool {
    let size = name.strip_prefix("hugepages-").and_then(|s| Quantity::parse(s).ok());
    match (size, Quantity::parse(amount.str())) {
        (Some(size), Ok(amount)) if size.value() != 0 => amount.value() % size.value() == 0,
        _ => false,
    }
}

fn validate_pod_resource_name(name: &str, amount: &View<'_>, errors: &mut ErrorList) {
    let before = errors.len();
    quantities::validate_resource_name(name, amount.path(), errors);
    if errors.len() == before && !supported_for_pod(name) {
        errors.push(Error::not_supported(amount.path(), name, &["cpu", "hugepages-", "memory"]));
    }
}

fn validate_claims(claims: &View<'_>, declared: &BTreeSet<&str>, errors: &mut ErrorList) {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for claim in claims.items() {
        let (name, request) = (claim.child("name").str(), claim.child("request"));
        if name.is_empty() {
            errors.push(Error::required(claim.path(), ""));
            continue;
        }
        if seen.contains(name) {
            errors.push(Error::duplicate(claim.path(), name));
        } else {
            let mut key = name.to_owned();
            if !request.str().is_empty() {
                checks::dns_label(&request, errors);
                key = format!("{name}/{}", request.str());
            }
            if seen.contains(&key) {
                errors.push(Error::duplicate(claim.path(), &key));
            } else if request.str().is_empty() {
                let overlaps = seen.iter().filter(|k| k.split_once('/').is_some_and(|(n, _)| n == name)).count();
                errors.extend((0..overlaps).map(|_| Error::duplicate(claim.path(), name)));
            }
            seen.insert(key);
        }
        if !declared.contains(name) {
            let mut detail = "must be one of the names in pod.spec.resourceClaims".to_owned();
            if declared.is_empty() {
                detail.push_str(" which is empty");
            } else {
                detail.push_str(": ");
                detail.push_str(&declared.iter().copied().collect::<Vec<_>>().join(", "));
            }
            errors.push(Error { kind: ErrorKind::NotFound, detail, ..Error::not_found(claim.path(), name) });
        }
    }
}

/// The pod's own resources, and that its containers fit into them.
pub(super) fn validate_pod_level(spec: &View<'_>, claims: &BTreeSet<&str>, options: &Options, errors: &mut ErrorList) {
    let resources = spec.child("resources");
    let Some(tree) = spec.value().filter(|_| resources.exists()) else { return };
    if spec.child("os").child("name").str() == "windows" {
        errors.push(Error::forbidden(resources.path(), "may not be set for a windows pod"));
        return;
    }
    if resources.child("claims").exists() {
        let path = resources.child("claims");
        errors.push(Error::forbidden(path.path(), "claims may not be set for Resources at pod-level"));
    }
    validate_with(&resources, true, claims, options, errors);
    let (requests, limits) = (resources.child("requests"), resources.child("limits"));
    for (name, needed) in aggregate_requests(tree) {
        let Ok(stated) = Quantity::parse(requests.child_named(&name).str()) else { continue };
        if needed > stated {
            let why = format!("must be greater than or equal to aggregate container requests of {needed}");
            errors.push(Error::invalid(&requests.path().key(&name), stated.to_string(), why));
        }
    }
    // Huge pages cannot be overcommitted, so that their sum counts, not each container's share alone.
    for (name, needed) in aggregate(tree, "limits").into_iter().filter(|(name, _)| quantities::is_huge_page(name)) {
        let Ok(stated) = Quantity::parse(limits.child_named(&name).str()) else { continue };
        if needed > stated {
            let why = format!("must be greater than or equal to aggregate container limits of {needed}");
            errors.push(Error::invalid(&limits.path().key(&name), stated.to_string(), why));
        }
    }
    for (i, container) in spec.child("containers").items().enumerate() {
        for (name, limit) in container.child("resources").child("limits").entries() {
            let most = resources.child("limits").child_named(name);
            let (Ok(limit), Ok(most)) = (Quantity::parse(limit.str()), Quantity::parse(most.str())) else { continue };
            if limit > most {
                let path = resources.path().child("containers").index(i).key(name).child("limits");
                let why = format!("must be less than or equal to pod limits of {most}");
                errors.push(Error::invalid(&path, limit.to_string(), why));
            }
        }
    }
}

/// `spec.overhead`, which is checked as the limits of a container are.
pub(super) fn validate_overhead(overhead: &View<'_>, options: &Options, errors: &mut ErrorList) {
    let Some(amounts) = overhead.value() else { return };
    let wrapped = coxswain_api::json!({ "limits": amounts });
    validate(&View::new(Some(&wrapped), overhead.path().clone()), &BTreeSet::new(), options, errors);
}
