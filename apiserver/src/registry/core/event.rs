//! Event (upstream: `pkg/registry/core/event`, `ValidateEventCreate`). One store serves the core group and `events.k8s.io`;
//! the latter is stricter.

use crate::registry::internal::{
    EVENT_SOURCE, Member, OBJECT_REFERENCE, PLAIN_MEMBER, Shape, TEXT_MEMBER, dump_member,
};
use crate::registry::metadata;
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::{Value, names};
use std::time::Duration;

const TEXT_MAX: usize = 128;
const NOTE_MAX: usize = 1024;
/// `--event-ttl`
const TTL: Duration = Duration::from_secs(3600);

pub struct Events;

impl Resource for Events {
    fn validate(&self, ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = validate_any(ctx, object);
        if is_core(ctx) {
            return errors;
        }
        errors.extend(metadata::validate_rules(object, true, &names::dns1123_subdomain, true));
        let root = View::root(object);
        let mut wrong = |field: &'static str, why: String| errors.push(Error::invalid(&Path::new(field), "", why));
        let kind = root.child("type").str();
        if !matches!(kind, "Normal" | "Warning") {
            wrong("type", format!("has invalid value: {kind}"));
        }
        for field in ["firstTimestamp", "lastTimestamp"] {
            if root.child(field).exists() {
                wrong(field, "needs to be unset".into());
            }
        }
        if root.child("count").i64() != 0 {
            wrong("count", "needs to be unset".into());
        }
        let source = root.child("source");
        if !source.child("component").is_empty() || !source.child("host").is_empty() {
            wrong("source", "needs to be unset".into());
        }
        let mut first = validate_series(&root);
        if !root.child("eventTime").exists() {
            first.push(Error::required(&Path::new("eventTime"), ""));
        }
        first.extend(errors);
        // What every event must satisfy comes first, then the series, then the fields that must not be there.
        let (general, rest): (Vec<_>, Vec<_>) = first.into_iter().partition(|e| GENERAL.contains(&e.field.as_str()));
        general.into_iter().chain(rest).collect()
    }

    fn validate_update(&self, ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let mut errors = validate_any(ctx, object);
        if is_core(ctx) {
            return errors;
        }
        let (new, before) = (View::root(object), View::root(old));
        if new.child("series").value() != before.child("series").value() {
            errors.extend(validate_series(&new));
        }
        for (field, shape) in FIXED {
            let value = new.child(field);
            let shown = dump_member(&value, shape);
            if shown.0 != dump_member(&before.child(field), shape).0 {
                let path = if *field == "reportingComponent" {
                    Path::new("reportingController")
                } else {
                    value.path().clone()
                };
                errors.push(Error::invalid(&path, shown, "field is immutable"));
            }
        }
        errors
    }

    /// In the core group only what every name must satisfy holds.
    fn validates_metadata(&self) -> bool {
        true
    }

    fn garbage_collected(&self) -> bool {
        false
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn ttl(&self, _object: &Value) -> Option<Duration> {
        Some(TTL)
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: false, whole_first: false }
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let root = View::root(object);
        let involved = root.child("involvedObject");
        let reporter = root.child("reportingComponent").str();
        let source = root.child("source").child("component").str();
        let mut fields: Vec<(&'static str, String)> =
            INVOLVED.iter().map(|(label, field)| (*label, involved.child(field).str().to_owned())).collect();
        fields.push(("reason", root.child("reason").str().to_owned()));
        fields.push(("reportingComponent", reporter.to_owned()));
        fields.push(("source", if source.is_empty() { reporter } else { source }.to_owned()));
        fields.push(("type", root.child("type").str().to_owned()));
        fields
    }

    fn selectable_labels(&self) -> &'static [&'static str] {
        &[
            "involvedObject.apiVersion",
            "involvedObject.fieldPath",
            "involvedObject.kind",
            "involvedObject.name",
            "involvedObject.namespace",
            "involvedObject.resourceVersion",
            "involvedObject.uid",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ]
    }
}

/// What an event of `events.k8s.io` stays, in upstream's order, in which the reason comes twice.
const FIXED: &[(&str, Member)] = &[
    (
        "involvedObject",
        Member(
            "",
            "",
            r#"{"Kind":"","Namespace":"","Name":"","UID":"","APIVersion":"","ResourceVersion":"","FieldPath":""}"#,
            OBJECT_REFERENCE,
        ),
    ),
    ("reason", TEXT_MEMBER),
    ("message", TEXT_MEMBER),
    ("source", Member("", "", r#"{"Component":"","Host":""}"#, EVENT_SOURCE)),
    ("firstTimestamp", PLAIN_MEMBER),
    ("lastTimestamp", PLAIN_MEMBER),
    ("count", Member("", "", "0", Shape::Plain)),
    ("reason", TEXT_MEMBER),
    ("type", TEXT_MEMBER),
    ("eventTime", PLAIN_MEMBER),
    ("action", TEXT_MEMBER),
    ("related", Member("", "", "null", OBJECT_REFERENCE)),
    ("reportingComponent", TEXT_MEMBER),
    ("reportingInstance", TEXT_MEMBER),
];

const INVOLVED: [(&str, &str); 7] = [
    ("involvedObject.kind", "kind"),
    ("involvedObject.namespace", "namespace"),
    ("involvedObject.name", "name"),
    ("involvedObject.uid", "uid"),
    ("involvedObject.apiVersion", "apiVersion"),
    ("involvedObject.resourceVersion", "resourceVersion"),
    ("involvedObject.fieldPath", "fieldPath"),
];
const GENERAL: [&str; 8] = [
    "involvedObject.namespace",
    "reportingController",
    "reportingComponent",
    "reportingInstance",
    "action",
    "reason",
    "message",
    "namespace",
];

fn is_core(ctx: &Context) -> bool {
    ctx.info.group.is_empty()
}

fn validate_any(ctx: &Context, object: &Value) -> ErrorList {
    let root = View::root(object);
    let mut errors = ErrorList::new();
    let namespace = root.child("metadata").child("namespace").str();
    let involved = root.child("involvedObject").child("namespace");
    let mismatch = Error::invalid(involved.path(), involved.str(), "does not match event.namespace");
    if !root.child("eventTime").exists() {
        let fits = if involved.is_empty() { matches!(namespace, "" | "default") } else { involved.str() == namespace };
        if !fits {
            errors.push(mismatch);
        }
    } else {
        if involved.is_empty() && !matches!(namespace, "default" | "kube-system") {
            errors.push(mismatch);
        }
        let controller = root.child("reportingComponent").str();
        let path = Path::new(if is_core(ctx) { "reportingComponent" } else { "reportingController" });
        if controller.is_empty() {
            errors.push(Error::required(&path, ""));
        }
        for why in names::qualified_name(controller) {
            errors.push(Error::invalid(&path, controller, why));
        }
        for field in ["reportingInstance", "action", "reason"] {
            let text = root.child(field);
            if text.is_empty() {
                errors.push(Error::required(text.path(), ""));
            }
            if text.len() > TEXT_MAX {
                errors.push(Error::invalid(text.path(), "", format!("can have at most {TEXT_MAX} characters")));
            }
        }
        let message = root.child("message");
        if message.len() > NOTE_MAX {
            errors.push(Error::invalid(message.path(), "", format!("can have at most {NOTE_MAX} characters")));
        }
    }
    for why in names::dns1123_subdomain(namespace, false) {
        errors.push(Error::invalid(&Path::new("namespace"), namespace, why));
    }
    errors
}

fn validate_series(root: &View<'_>) -> ErrorList {
    let mut errors = ErrorList::new();
    let series = root.child("series");
    if series.exists() {
        let count = series.child("count");
        if count.i64() < 2 {
            errors.push(Error::invalid(count.path(), "", "should be at least 2"));
        }
        let last = series.child("lastObservedTime");
        if !last.exists() {
            errors.push(Error::required(last.path(), ""));
        }
    }
    errors
}
