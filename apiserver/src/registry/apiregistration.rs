//! API services: which server answers for a group and version (upstream: `kube-aggregator/pkg/registry/apiservice` and its
//! `apis/apiregistration/validation`).

use super::metadata;
use super::resource::Resource;
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::{Value, names};

pub struct ApiServices;

impl Resource for ApiServices {
    fn set_defaults(&self, object: &mut Value) {
        if let Some(service) = object.pointer_mut("/spec/service").and_then(Value::as_object_mut)
            && service.get("port").is_none_or(Value::is_null)
        {
            service.insert("port".into(), 443.into());
        }
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        metadata_name(name, prefix)
    }

    fn restricts_finalizers(&self) -> bool {
        false
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let root = View::root(object);
        let spec = root.child("spec");
        let (group, version) = (spec.child("group"), spec.child("version"));
        let name = metadata::text(object, "name");
        let required = format!("{}.{}", version.str(), group.str());
        if metadata_name(name, false).is_empty() && !name.is_empty() && name != required {
            let what = format!("must be `spec.version+\".\"+spec.group`: {}", coxswain_api::field::go_quote(&required));
            errors.push(Error::invalid(&Path::new("metadata").child("name"), name, what));
        }
        if group.is_empty() && version.str() != "v1" {
            let what = "only v1 may have an empty group and it better be legacy kube";
            errors.push(Error::required(group.path(), what));
        }
        if !group.is_empty() {
            for what in names::dns1123_subdomain(group.str(), false) {
                errors.push(Error::invalid(group.path(), &group, what));
            }
        }
        for what in names::dns1035_label(version.str(), false) {
            errors.push(Error::invalid(version.path(), version.str(), what));
        }
        for (field, max) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
            let value = spec.child_named(field);
            if value.i64() <= 0 || value.i64() > max {
                let what = format!("must be positive and less than {max}");
                errors.push(Error::invalid(value.path(), value.i64(), what));
            }
        }
        let (service, bundle, insecure) =
            (spec.child("service"), spec.child("caBundle"), spec.child("insecureSkipTLSVerify"));
        if !service.exists() {
            if !bundle.is_empty() {
                // The bundle is base64 in the tree; four characters stand for three bytes.
                let bytes = bundle.str().trim_end_matches('=').len() * 3 / 4;
                let what = "local APIServices may not have a caBundle";
                errors.push(Error::invalid(bundle.path(), format!("{bytes} bytes"), what));
            }
            if insecure.bool() {
                let what = "local APIServices may not have insecureSkipTLSVerify";
                errors.push(Error::invalid(insecure.path(), true, what));
            }
            return errors;
        }
        for field in ["namespace", "name"] {
            let value = service.child_named(field);
            if value.is_empty() {
                errors.push(Error::required(value.path(), ""));
            }
        }
        let port = service.child("port");
        if !(1..=65535).contains(&port.i64()) {
            let what = "port is not valid: must be between 1 and 65535, inclusive";
            errors.push(Error::invalid(port.path(), port.i64(), what));
        }
        if insecure.bool() && !bundle.is_empty() {
            let what = "may not be true if caBundle is present";
            errors.push(Error::invalid(insecure.path(), true, what));
        }
        errors
    }

    fn validate_update(&self, ctx: &Context, object: &Value, _old: &Value, subresource: &str) -> ErrorList {
        if subresource == "status" { ErrorList::new() } else { self.validate(ctx, object) }
    }
}

fn metadata_name(name: &str, prefix: bool) -> Vec<String> {
    names::path_segment(name, prefix)
}
