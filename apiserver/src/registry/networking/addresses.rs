//! IPAddress and ServiceCIDR: which addresses Services have and may have.

use crate::registry::checks;
use crate::registry::resource::Resource;
use crate::request::Context;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::names::{self, ip};

pub struct IpAddresses;

impl Resource for IpAddresses {
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

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let (new, old, mut errors) =
            (View::root(object).child("spec"), View::root(old).child("spec"), ErrorList::new());
        let parent = new.child("parentRef");
        if !checks::same(parent.value(), old.child("parentRef").value()) {
            // As upstream's internal type prints itself.
            let part = |name: &'static str| serde_json::json!(parent.child(name).str());
            let shown = format!(
                "{{\"Group\":{},\"Resource\":{},\"Namespace\":{},\"Name\":{}}}",
                part("group"),
                part("resource"),
                part("namespace"),
                part("name")
            );
            let error = Error::invalid(parent.path(), &Value::Null, "field is immutable");
            errors.push(Error { bad_value: Some(shown), ..error });
        }
        errors
    }
}

pub struct ServiceCidrs;

impl Resource for ServiceCidrs {
    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let (cidrs, mut errors) = (View::root(object).child("spec").child("cidrs"), ErrorList::new());
        if cidrs.is_empty() {
            errors.push(Error::required(cidrs.path(), "at least one CIDR required"));
            return errors;
        }
        if cidrs.len() > 2 {
            errors.push(Error::invalid(cidrs.path(), &cidrs, "may only hold up to 2 values"));
            return errors;
        }
        for cidr in cidrs.items() {
            errors.extend(ip::check_cidr(cidr.path(), cidr.str()));
        }
        let is_v6: Vec<bool> = cidrs.items().map(|c| c.str().contains(':')).collect();
        if is_v6.len() == 2 && is_v6[0] == is_v6[1] {
            let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
            errors.push(Error::invalid(cidrs.path(), &cidrs, why));
        }
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        let (new, old, mut errors) =
            (View::root(object).child("spec"), View::root(old).child("spec"), ErrorList::new());
        if subresource.is_empty() {
            let (cidrs, before) = (new.child("cidrs"), old.child("cidrs"));
            // One range may get a second of the other family; what is there stays.
            let changed = |at: usize| {
                let (now, was) = (cidrs.items().nth(at), before.items().nth(at));
                now.filter(|now| was.is_some_and(|was| was.str() != now.str()))
            };
            if cidrs.len() < before.len() || before.is_empty() && !cidrs.is_empty() {
                errors.push(Error::invalid(cidrs.path(), &cidrs, "field is immutable"));
            }
            for range in (0..before.len()).filter_map(changed) {
                errors.push(Error::invalid(range.path(), &range, "field is immutable"));
            }
        }
        errors
    }
}
