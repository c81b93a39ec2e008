//! NetworkPolicy: which traffic a pod may send and receive.

use crate::registry::checks::{self, SelectorLeniency};
use crate::registry::defaults::{child_mut, set_default};
use crate::registry::resource::Resource;
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::names::{self, ip};
use coxswain_api::{Value, json};

pub struct NetworkPolicies;

impl Resource for NetworkPolicies {
    fn set_defaults(&self, object: &mut Value) {
        let spec = child_mut(object, "spec");
        if View::root(spec).child("policyTypes").is_empty() {
            // A policy with egress rules means them; ingress is always meant.
            let has_egress = !View::root(spec).child("egress").is_empty();
            spec["policyTypes"] = if has_egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        }
        for direction in ["ingress", "egress"] {
            let rules = spec.get_mut(direction).and_then(Value::as_array_mut);
            for rule in rules.into_iter().flatten() {
                let ports = rule.get_mut("ports").and_then(Value::as_array_mut);
                ports.into_iter().flatten().for_each(|port| set_default(port, "protocol", || json!("TCP")));
            }
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        spec(&View::root(object).child("spec"), &Leniency::default(), &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let mut errors = ErrorList::new();
        let leniency = Leniency::of(&View::root(old).child("spec"));
        spec(&View::root(object).child("spec"), &leniency, &mut errors);
        errors
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// The directions of traffic, with the fields that list the peers of each.
const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

/// What an older policy had wrong, and its update may keep.
#[derive(Default)]
struct Leniency {
    selectors: SelectorLeniency,
    /// Every network of the older policy.
    cidrs: Vec<String>,
}

impl Leniency {
    fn of(spec: &View<'_>) -> Leniency {
        let mut leniency = Leniency::default();
        let mut errors = ErrorList::new();
        checks::label_selector(&spec.child("podSelector"), SelectorLeniency::default(), &mut errors);
        leniency.selectors.allow_invalid_values = !errors.is_empty();
        for (direction, peers) in DIRECTIONS {
            for rule in spec.child(direction).items() {
                for peer in rule.child(peers).items() {
                    let block = peer.child("ipBlock");
                    leniency.cidrs.extend(block.child("cidr").opt_str().map(str::to_owned));
                    leniency.cidrs.extend(block.child("except").items().map(|e| e.str().to_owned()));
                }
            }
        }
        leniency
    }

    fn cidr(&self, cidr: &View<'_>, errors: &mut ErrorList) {
        if !self.cidrs.iter().any(|old| old == cidr.str()) {
            errors.extend(ip::check_cidr_legacy(cidr.path(), cidr.str(), true, &[]));
        }
    }
}

fn spec(spec: &View<'_>, leniency: &Leniency, errors: &mut ErrorList) {
    checks::label_selector(&spec.child("podSelector"), leniency.selectors, errors);
    for (direction, peers) in DIRECTIONS {
        for rule in spec.child(direction).items() {
            rule.child("ports").items().for_each(|p| port(&p, errors));
            rule.child(peers).items().for_each(|p| peer(&p, leniency, errors));
        }
    }
    let types = spec.child("policyTypes");
    if types.len() > 2 {
        errors.push(Error::invalid(types.path(), &types, "may not specify more than two policyTypes"));
        return;
    }
    types.items().for_each(|t| checks::supported_value(&t, &["Ingress", "Egress"], errors));
}

fn port(port: &View<'_>, errors: &mut ErrorList) {
    let protocol = port.child("protocol");
    if protocol.exists() {
        checks::supported_value(&protocol, &["TCP", "UDP", "SCTP"], errors);
    }
    let (number, end) = (port.child("port"), port.child("endPort"));
    let lonely_end = |why: &str, errors: &mut ErrorList| {
        if let Some(last) = end.opt_i64() {
            errors.push(Error::invalid(end.path(), last, format!("may not be specified when `port` is {why}")));
        }
    };
    match number.value() {
        None => lonely_end("not specified", errors),
        Some(Value::String(name)) => {
            lonely_end("non-numeric", errors);
            checks::all(&number, names::port_name(name), errors);
        }
        Some(_) => {
            let first = number.i64();
            errors.extend(names::port_number(first).into_iter().map(|why| Error::invalid(number.path(), first, why)));
            if let Some(last) = end.opt_i64() {
                if last < first {
                    // Upstream shows the port, not the end port.
                    errors.push(Error::invalid(end.path(), first, "must be greater than or equal to `port`"));
                }
                errors.extend(names::port_number(last).into_iter().map(|why| Error::invalid(end.path(), last, why)));
            }
        }
    }
}

fn peer(peer: &View<'_>, leniency: &Leniency, errors: &mut ErrorList) {
    let mut peers = 0;
    for name in ["podSelector", "namespaceSelector"] {
        let selector = peer.child(name);
        if selector.exists() {
            peers += 1;
            checks::label_selector(&selector, leniency.selectors, errors);
        }
    }
    let block = peer.child("ipBlock");
    if block.exists() {
        peers += 1;
        ip_block(&block, leniency, errors);
    }
    if peers == 0 {
        errors.push(Error::required(peer.path(), "must specify a peer"));
    } else if peers > 1 && block.exists() {
        errors.push(Error::forbidden(peer.path(), "may not specify both ipBlock and another peer"));
    }
}

fn ip_block(block: &View<'_>, leniency: &Leniency, errors: &mut ErrorList) {
    let cidr = block.child("cidr");
    if cidr.is_empty() {
        errors.push(Error::required(cidr.path(), ""));
        return;
    }
    leniency.cidr(&cidr, errors);
    let Some(outer) = parse(cidr.str()) else { return };
    for except in block.child("except").items() {
        leniency.cidr(&except, errors);
        let Some(inner) = parse(except.str()) else { continue };
        if !outer.contains(&inner) || outer.prefix_len() >= inner.prefix_len() {
            errors.push(Error::invalid(except.path(), except.str(), "must be a strict subset of `cidr`"));
        }
    }
}

/// A CIDR as Go's lenient parser takes it: leading zeros are allowed.
fn parse(text: &str) -> Option<ipnet::IpNet> {
    let (address, bits) = ip::parse_cidr_sloppy(text)?;
    ipnet::IpNet::new(address.ip, bits).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_written_in_the_one_way_unless_they_were_there() {
        let policy = json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.1/8", "except": ["010.1.0.0/16", "10.0.0.0/8"]}}]}]});
        let check = |leniency: &Leniency| -> Vec<String> {
            let mut errors = ErrorList::new();
            spec(&View::root(&policy), leniency, &mut errors);
            errors.iter().map(ToString::to_string).collect()
        };
        let subset =
            "ingress[0].from[0].ipBlock.except[1]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`";
        assert_eq!(
            check(&Leniency::default()),
            [
                "ingress[0].from[0].ipBlock.cidr: Invalid value: \"10.0.0.1/8\": must not have bits set beyond the prefix length",
                "ingress[0].from[0].ipBlock.except[0]: Invalid value: \"010.1.0.0/16\": must not have leading 0s in IP or prefix length",
                subset,
            ]
        );
        assert_eq!(check(&Leniency::of(&View::root(&policy))), [subset]);
    }
}
