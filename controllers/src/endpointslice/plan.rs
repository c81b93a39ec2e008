//! Fits wanted endpoints into the slices there are, with as few writes as possible. Pure.
//!
//! An endpoint stays in the slice it is in. New ones go first into slices that are written anyway, then into one slice
//! that has room for the rest, then into new slices. Slices that become empty go.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::common::owners;
use crate::common::selector::Labels;

/// Annotation with the time of the change that endpoints were written for.
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Endpoints of one address type with the same ports. Without ports it only says that the address type is wanted.
pub struct Group {
    pub address_type: String,
    pub ports: Option<Vec<EndpointPort>>,
    pub endpoints: Vec<Endpoint>,
}

pub struct Desired {
    pub labels: Labels,
    pub annotations: BTreeMap<String, String>,
    pub owner: OwnerReference,
    pub namespace: String,
    pub prefix: String,
    pub groups: Vec<Group>,
    pub trigger: Option<String>,
}

#[derive(Default)]
pub struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<EndpointSlice>,
}

pub fn plan(desired: Desired, existing: &[Arc<EndpointSlice>], endpoints_max: usize) -> Plan {
    let mut plan = Plan::default();
    let mut remaining: Vec<&EndpointSlice> = existing.iter().map(Arc::as_ref).collect();
    let mut take = |matches: &dyn Fn(&EndpointSlice) -> bool| {
        let (taken, kept): (Vec<_>, Vec<_>) = remaining.iter().partition(|slice| matches(slice));
        remaining = kept;
        taken
    };
    // Whether a type has, or will have, a slice.
    let mut covered: BTreeMap<String, bool> = BTreeMap::new();
    let Desired { groups, .. } = &desired;
    for group in groups {
        let Some(ports) = &group.ports else {
            covered.entry(group.address_type.clone()).or_insert(false);
            continue;
        };
        let slices: Vec<&EndpointSlice> = take(&|slice| {
            slice.address_type == group.address_type
                && slice.ports.as_deref().unwrap_or_default() == ports.as_slice()
                && owners::is_controlled_by(&slice.metadata, &desired.owner.uid)
        });
        covered.insert(group.address_type.clone(), true);
        fit(&desired, group, ports, &slices, endpoints_max, &mut plan);
    }
    for (address_type, covered) in covered {
        if covered {
            continue;
        }
        // Nothing is selected: one slice without endpoints and ports says so.
        let placeholder = take(&|slice| {
            slice.address_type == address_type
                && slice.endpoints.as_ref().is_none_or(Vec::is_empty)
                && slice.ports.as_ref().is_none_or(Vec::is_empty)
                && owners::is_controlled_by(&slice.metadata, &desired.owner.uid)
        });
        match placeholder.split_first() {
            Some((first, others)) => {
                if needs_labels(&desired, first) {
                    plan.update.push(relabelled(&desired, first));
                }
                plan.delete.extend(others.iter().map(|slice| (*slice).clone()));
            }
            None => plan.create.push(new_slice(&desired, &address_type, &[], Vec::new())),
        }
    }
    plan.delete.extend(remaining.into_iter().cloned());
    plan
}

/// What tells endpoints apart; one that differs in anything else is the same endpoint, changed.
fn identity(endpoint: &Endpoint) -> (&[String], Option<&str>, Option<&str>) {
    let target = endpoint.target_ref.as_ref().and_then(|target| target.name.as_deref());
    (&endpoint.addresses, endpoint.hostname.as_deref(), target)
}

fn fit(
    desired: &Desired,
    group: &Group,
    ports: &[EndpointPort],
    slices: &[&EndpointSlice],
    endpoints_max: usize,
    plan: &mut Plan,
) {
    let mut wanted: Vec<Option<&Endpoint>> = group.endpoints.iter().map(Some).collect();
    let mut by_identity: std::collections::HashMap<_, usize> =
        group.endpoints.iter().enumerate().map(|(index, endpoint)| (identity(endpoint), index)).collect();
    let mut changed: Vec<EndpointSlice> = Vec::new();
    let mut unchanged: Vec<&EndpointSlice> = Vec::new();
    for slice in slices {
        let present = slice.endpoints.as_deref().unwrap_or_default();
        let mut kept = Vec::with_capacity(present.len());
        let mut differs = false;
        for endpoint in present {
            if let Some(found) =
                by_identity.remove(&identity(endpoint)).and_then(|index| wanted.get_mut(index)).and_then(Option::take)
            {
                differs |= found != endpoint;
                kept.push(found.clone());
            }
        }
        if kept.is_empty() {
            plan.delete.push((*slice).clone());
        } else if differs || kept.len() != present.len() {
            let mut slice = relabelled(desired, slice);
            slice.endpoints = Some(kept);
            changed.push(slice);
        } else if needs_labels(desired, slice) {
            changed.push(relabelled(desired, slice));
        } else {
            unchanged.push(slice);
        }
    }
    let mut rest: Vec<Endpoint> = wanted.into_iter().flatten().cloned().collect();
    let length = |slice: &EndpointSlice| slice.endpoints.as_ref().map_or(0, Vec::len);
    changed.sort_by_key(|slice| std::cmp::Reverse(length(slice)));
    for slice in &mut changed {
        let room = endpoints_max.saturating_sub(length(slice)).min(rest.len());
        slice.endpoints.get_or_insert_default().extend(rest.drain(..room));
    }
    while !rest.is_empty() {
        // The fullest slice that has room for what would not fill a slice of its own.
        let tail = rest.len() % endpoints_max;
        let fullest = unchanged
            .iter()
            .enumerate()
            .filter(|(_, slice)| tail > 0 && rest.len() < endpoints_max && length(slice) + tail <= endpoints_max)
            .max_by_key(|(_, slice)| length(slice))
            .map(|(index, _)| index);
        if let Some(index) = fullest {
            let mut slice = relabelled(desired, unchanged.remove(index));
            slice.endpoints.get_or_insert_default().append(&mut rest);
            changed.push(slice);
        } else {
            let chunk: Vec<_> = rest.drain(..endpoints_max.min(rest.len())).collect();
            plan.create.push(new_slice(desired, &group.address_type, ports, chunk));
        }
    }
    plan.update.append(&mut changed);
}

/// Labels that other writers put on a slice stay.
fn needs_labels(desired: &Desired, slice: &EndpointSlice) -> bool {
    slice.metadata.labels.as_ref() != Some(&desired.labels)
}

fn relabelled(desired: &Desired, slice: &EndpointSlice) -> EndpointSlice {
    let mut slice = slice.clone();
    slice.metadata.labels = Some(desired.labels.clone());
    let mut annotations = slice.metadata.annotations.take().unwrap_or_default();
    annotations.extend(desired.annotations.clone());
    annotations.remove(TRIGGER_TIME);
    if let Some(time) = &desired.trigger {
        annotations.insert(TRIGGER_TIME.to_owned(), time.clone());
    }
    slice.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    slice
}

fn new_slice(desired: &Desired, address_type: &str, ports: &[EndpointPort], endpoints: Vec<Endpoint>) -> EndpointSlice {
    let slice = EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(desired.prefix.clone()),
            namespace: Some(desired.namespace.clone()),
            owner_references: Some(vec![desired.owner.clone()]),
            ..ObjectMeta::default()
        },
        address_type: address_type.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports.to_vec()),
    };
    relabelled(desired, &slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: usize) -> Endpoint {
        Endpoint { addresses: vec![format!("10.0.0.{address}")], ..Endpoint::default() }
    }

    fn desired(count: usize) -> Desired {
        let ports = Some(vec![EndpointPort { port: Some(80), ..EndpointPort::default() }]);
        let marker = Group { address_type: "IPv4".to_owned(), ports: None, endpoints: Vec::new() };
        let group = Group { address_type: "IPv4".to_owned(), ports, endpoints: (0..count).map(endpoint).collect() };
        Desired {
            labels: Labels::new(),
            annotations: BTreeMap::new(),
            owner: OwnerReference { uid: "u".to_owned(), controller: Some(true), ..OwnerReference::default() },
            namespace: "n".to_owned(),
            prefix: "s-".to_owned(),
            groups: if count == 0 { vec![marker] } else { vec![marker, group] },
            trigger: None,
        }
    }

    fn lengths(slices: &[EndpointSlice]) -> Vec<usize> {
        slices.iter().map(|slice| slice.endpoints.as_ref().map_or(0, Vec::len)).collect()
    }

    #[test]
    fn endpoints_stay_where_they_are_and_new_ones_fill_up() {
        let first = plan(desired(25), &[], 10);
        assert_eq!(lengths(&first.create), [10, 10, 5]);
        let existing: Vec<_> = first.create.into_iter().map(Arc::new).collect();
        let second = plan(desired(25), &existing, 10);
        assert!(second.create.is_empty() && second.update.is_empty() && second.delete.is_empty());
        let third = plan(desired(28), &existing, 10);
        assert_eq!(lengths(&third.update), [8]);
        let fourth = plan(desired(12), &existing, 10);
        assert_eq!((lengths(&fourth.update), fourth.delete.len()), (vec![2], 1));
    }

    #[test]
    fn a_service_without_endpoints_has_one_empty_slice() {
        let first = plan(desired(0), &[], 10);
        assert_eq!(lengths(&first.create), [0]);
        let existing: Vec<_> = first.create.into_iter().map(Arc::new).collect();
        let second = plan(desired(0), &existing, 10);
        assert!(second.create.is_empty() && second.update.is_empty() && second.delete.is_empty());
    }
}
