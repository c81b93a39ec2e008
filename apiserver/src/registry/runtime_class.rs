//! RuntimeClass of `node.k8s.io` (upstream: `pkg/registry/node/runtimeclass`, `pkg/apis/node/validation`).

use crate::registry::checks;
use crate::registry::core::pod_spec::{overhead, tolerations};
use crate::registry::resource::Resource;
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, json, names};

pub struct RuntimeClasses;

impl Resource for RuntimeClasses {
    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let (root, mut errors) = (View::root(object), ErrorList::new());
        let handler = root.child("handler");
        if handler.is_empty() {
            errors.push(Error::required(handler.path(), ""));
        } else {
            checks::dns_label(&handler, &mut errors);
        }
        let fixed = root.child("overhead").child("podFixed");
        // Upstream checks the amounts as if they were a container's limits.
        overhead(&View::new(fixed.value(), root.child("overhead").path().clone()), &mut errors);
        let scheduling = root.child("scheduling");
        if scheduling.exists() {
            selector_labels(&scheduling.child("nodeSelector"), &mut errors);
            tolerations(&scheduling.child("tolerations"), false, &mut errors);
            let mut seen: Vec<Value> = Vec::new();
            for toleration in scheduling.child("tolerations").items() {
                let shown = json!({
                    "Key": toleration.child("key").str(), "Operator": toleration.child("operator").str(),
                    "Value": toleration.child("value").str(), "Effect": toleration.child("effect").str(),
                    "TolerationSeconds": toleration.child("tolerationSeconds").value(),
                });
                if seen.contains(&shown) {
                    errors.push(Error::duplicate(toleration.path(), GoStruct(&toleration)));
                }
                seen.push(shown);
            }
        }
        errors
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let (new, old, mut errors) = (View::root(object), View::root(old), ErrorList::new());
        checks::immutable_text(&new.child("handler"), &old.child("handler"), &mut errors);
        errors
    }

    fn restricts_finalizers(&self) -> bool {
        false
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// Labels of a node selector, whose errors are reported at the map.
fn selector_labels(selector: &View<'_>, errors: &mut ErrorList) {
    for (key, value) in selector.entries() {
        for why in names::qualified_name(key) {
            errors.push(Error::invalid(selector.path(), key, why));
        }
        for why in names::label_value(value.str()) {
            errors.push(Error::invalid(selector.path(), value.str(), why));
        }
    }
}

/// A toleration as upstream's message shows it: every field of the internal struct, in its order.
struct GoStruct<'a, 'b>(&'a View<'b>);

impl coxswain_api::field::BadValue for GoStruct<'_, '_> {
    fn text(&self) -> String {
        let quote = |name: &'static str| coxswain_api::field::go_quote(self.0.child(name).str());
        let seconds = self.0.child("tolerationSeconds");
        format!(
            r#"{{"Key":{},"Operator":{},"Value":{},"Effect":{},"TolerationSeconds":{}}}"#,
            quote("key"),
            quote("operator"),
            quote("value"),
            quote("effect"),
            seconds.opt_i64().map_or_else(|| "null".to_owned(), |s| s.to_string())
        )
    }
}
