//! IPAddress and ServiceCIDR: which addresses Services have and may have.

use crate::registry::checks;
use crate::registry::internal::{PARENT_REFERENCE, dump};
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::names::{self, ip};

pub struct IpAddresses;

impl Resource for IpAddresses {
    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: subresource.is_empty(), whole_first: true }
    }

    fn validate_name(&self, name: &str, _prefix: bool) -> Vec<String> {
        let path = coxswain_api::field::Path::root();
        ip::check_ip(&path, name).into_iter().map(|e| e.detail).collect()
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let (parent, mut errors) = (View::root(object).child("spec").child("parentRef"), ErrorList::new());
        if !parent.exists() {
            errors.push(Error::required(parent.path(), ""));
            return errors;
        }
        let field = |name| parent.child(name);
        let (group, resource, name, namespace) = (field("group"), field("resource"), field("name"), field("namespace"));
        if !group.is_empty() {
            checks::dns_subdomain(&group, &mut errors);
        }
        for needed in [resource, name] {
            if needed.is_empty() {
                errors.push(Error::required(needed.path(), ""));
            } else {
                checks::all(&needed, names::path_segment(needed.str(), false), &mut errors);
            }
        }
        if !namespace.is_empty() {
            checks::all(&namespace, names::path_segment(namespace.str(), false), &mut errors);
        }
        errors
    }

    fn validate_update(&self, ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let (new, old, mut errors) =
            (View::root(object).child("spec"), View::root(old).child("spec"), self.validate(ctx, object));
        let parent = new.child("parentRef");
        if !checks::same(parent.value(), old.child("parentRef").value()) {
            errors.push(Error::invalid(parent.path(), dump(&parent, &PARENT_REFERENCE), checks::IMMUTABLE));
        }
        errors
    }
}

pub struct ServiceCidrs;

impl Resource for ServiceCidrs {
    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        service_cidrs(&View::root(object).child("spec").child("cidrs"), &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        let mut errors = ErrorList::new();
        if !subresource.is_empty() {
            return errors;
        }
        let ranges = |of| View::root(of).child("spec").child("cidrs");
        let (cidrs, before) = (ranges(object), ranges(old));
        let extended = before.len() == 1 && cidrs.len() == 2;
        if before.len() != cidrs.len() && !extended {
            errors.push(Error::invalid(cidrs.path(), &cidrs, "field is immutable"));
            return errors;
        }
        for (now, was) in cidrs.items().zip(before.items()) {
            if now.str() != was.str() {
                errors.push(Error::invalid(now.path(), &now, "field is immutable"));
            }
        }
        // One range may get a second of the other family.
        if extended {
            service_cidrs(&cidrs, &mut errors);
        }
        errors
    }
}

fn service_cidrs(cidrs: &View<'_>, errors: &mut ErrorList) {
    if cidrs.is_empty() {
        errors.push(Error::required(cidrs.path(), "at least one CIDR required"));
        return;
    }
    if cidrs.len() > 2 {
        errors.push(Error::invalid(cidrs.path(), cidrs, "may only hold up to 2 values"));
        return;
    }
    for cidr in cidrs.items() {
        errors.extend(ip::check_cidr(cidr.path(), cidr.str()));
    }
    let is_v4 = |cidr: View<'_>| ip::parse_cidr_sloppy(cidr.str()).map(|(address, _)| address.ip.is_ipv4());
    let families: Vec<Option<bool>> = cidrs.items().map(is_v4).collect();
    if families.len() == 2 && families[0] == families[1] && families[0].is_some() {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.push(Error::invalid(cidrs.path(), cidrs, why));
    }
}
