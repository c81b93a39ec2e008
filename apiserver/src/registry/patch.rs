//! PATCH: JSON patch, merge patch, strategic merge patch and server-side apply (upstream: `handlers/patch.go`).

use super::options::{FieldValidation, OptionsKind, WriteOptions};
use super::pipeline::{Call, Pipeline, Reply, Shape};
use super::update::{Change, UpdateRules, check_name, reset_fields};
use super::{convert, decode, managed_fields, metadata};
use async_trait::async_trait;
use coxswain_api::codec::{self, DecodeError, Format};
use coxswain_api::features::Feature;
use coxswain_api::field::{Error, Path, go_quote};
use coxswain_api::{Map, Status, Value, json, patch};
use http::header::CONTENT_TYPE;

/// What a PATCH body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PatchKind {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchKind {
    /// What a request's body is, and in which format it is written.
    fn of(call: &Call) -> Result<(Self, Format), Status> {
        let header = call.header(CONTENT_TYPE);
        let cbor = Feature::CBORServingAndStorage.enabled();
        let unsupported = || {
            let cbor = if cbor { ", application/apply-patch+cbor" } else { "" };
            Status::new(
                415,
                "UnsupportedMediaType",
                format!(
                    "the body of the request was in an unknown format - accepted media types include: \
                     application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml{cbor}"
                ),
            )
        };
        match header.split(';').next().unwrap_or_default() {
            "application/json-patch+json" => Ok((PatchKind::Json, Format::Json)),
            "application/merge-patch+json" => Ok((PatchKind::Merge, Format::Json)),
            "application/strategic-merge-patch+json" if !call.served.custom => Ok((PatchKind::Strategic, Format::Json)),
            "application/apply-patch+yaml" => Ok((PatchKind::Apply, Format::Yaml)),
            "application/apply-patch+cbor" if cbor => Ok((PatchKind::Apply, Format::Cbor)),
            // The router itself refuses a type that no patch has; only a type of other patches gets a sentence.
            "application/strategic-merge-patch+json" | "application/apply-patch+cbor" => Err(unsupported()),
            _ if call.served.custom => Err(unsupported()),
            _ => Err(Status::new(415, "UnsupportedMediaType", "415: Unsupported Media Type")
                .with_details(coxswain_api::status::Details::default())),
        }
    }
}

/// A decoded patch.
pub(super) struct Patch {
    kind: PatchKind,
    /// For apply the applied configuration.
    value: Value,
    /// What strict decoding found in the patch document itself.
    strict_errors: Vec<String>,
    options: WriteOptions,
}

impl Patch {
    /// Reads kind, options and document of the request.
    pub(super) fn of_call(call: &Call) -> Result<Self, Status> {
        let (kind, format) = PatchKind::of(call)?;
        let options = WriteOptions::of_query(&call.query, OptionsKind::Patch { apply: kind == PatchKind::Apply })?;
        let decoded = decode::untyped(&call.body, format).map_err(|e| {
            let text = e.to_string();
            Status::bad_request(match kind {
                PatchKind::Strategic => text,
                PatchKind::Apply if format == Format::Cbor => format!("error decoding YAML: {text}"),
                PatchKind::Apply if matches!(e, DecodeError::Syntax(_)) => {
                    format!("error decoding YAML: error converting YAML to JSON: {text}")
                }
                _ => format!("error decoding patch: {text}"),
            })
        })?;
        if kind == PatchKind::Apply && !matches!(decoded.value, Value::Object(_) | Value::Null) {
            return Err(Status::bad_request(format!(
                "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into Go value of \
                 type map[string]interface {{}}",
                patch::json_kind(&decoded.value)
            )));
        }
        let mut strict_errors = decoded.strict_errors;
        if kind == PatchKind::Json {
            if options.field_validation != FieldValidation::Ignore {
                let unknown = patch::unknown_fields(&decoded.value);
                strict_errors
                    .extend(unknown.map_err(|why| Status::bad_request(format!("error decoding patch: {why}")))?);
            }
            strict_errors.iter_mut().for_each(|e| *e = format!("json patch {e}"));
        }
        Ok(Self { kind, value: decoded.value, strict_errors, options })
    }

    pub(super) fn options(&self) -> &WriteOptions {
        &self.options
    }

    pub(super) fn is_apply(&self) -> bool {
        self.kind == PatchKind::Apply
    }

    /// The patched object, managed fields brought up to date; `current` and the result are in the version of the request.
    pub(super) fn apply(
        &self,
        call: &Call,
        shape: Shape<'_>,
        current: Option<&Value>,
        subresource: &str,
    ) -> Result<Value, Status> {
        let writer = managed_fields::Writer {
            manager: &call.ctx.field_manager,
            api_version: shape.version.api_version(),
            kind: shape.kind,
            subresource,
            now: call.ctx.now,
            schema: shape.schema,
            reset: reset_fields(call),
        };
        if self.kind == PatchKind::Apply {
            return self.apply_configuration(call, shape, current, &writer);
        }
        let Some(current) = current else { return Err(call.not_found(call.name())) };
        let patched = match self.kind {
            PatchKind::Json => patch::json(current, &self.value)?,
            PatchKind::Merge => patch::merge(current, &self.value)?,
            _ => patch::strategic(current, &self.value, shape.schema)?,
        };
        let mut object = self.decoded(call, shape, patched, current)?;
        decode::set_defaults(call, &mut object, shape);
        if call.is_whole() {
            object = convert::settle(call, object)?;
        }
        managed_fields::update(Some(current), &mut object, &writer);
        Ok(object)
    }

    /// Makes the patched tree canonical, and reports what does not belong there.
    fn decoded(&self, call: &Call, shape: Shape<'_>, mut patched: Value, current: &Value) -> Result<Value, Status> {
        // What is as it was is canonical already, if it comes from the store.
        let unchanged = if call.served.is_hub() && call.is_whole() {
            self.take_unchanged(&mut patched, current)
        } else {
            Map::new()
        };
        let custom = call.strategy().structural().filter(|_| call.is_whole());
        let decoded = match custom {
            Some(structural) => {
                let mut value = patched.clone();
                let unknown = structural.prune(&mut value);
                unknown.map(|unknown| {
                    let strict_errors = unknown.into_iter().map(|path| format!("unknown field {}", go_quote(&path)));
                    codec::Decoded { value, strict_errors: strict_errors.collect() }
                })
            }
            None => codec::json::decode_tree(&patched, shape.schema),
        };
        let refused = |why: String, unchanged: Map<String, Value>| {
            let shown = match self.kind {
                PatchKind::Strategic => patch::go_print(&self.value),
                _ => shown_document(current, &with(patched.clone(), unchanged), shape),
            };
            let error = Error::invalid(&Path::new("patch"), &shown, why);
            Status::invalid("", "", "", &[error])
        };
        let decoded = match decoded {
            Ok(decoded) => decoded,
            Err(DecodeError::Syntax(text) | DecodeError::Value(text)) => {
                let of_tree =
                    (self.kind == PatchKind::Strategic).then(|| patch::restore::refusal(&patched, shape.schema));
                return Err(refused(of_tree.flatten().unwrap_or(text), unchanged));
            }
        };
        // A strategic patch is merged into an object of its type and cannot make another of it.
        if self.kind != PatchKind::Strategic
            && !call.served.custom
            && let Some(why) = decode::other_kind(call, &decoded.value, shape)
        {
            return Err(refused(why, unchanged));
        }
        let strict: Vec<&String> = self.strict_errors.iter().chain(&decoded.strict_errors).collect();
        match self.options.field_validation {
            FieldValidation::Strict if !strict.is_empty() => {
                let list: Vec<&str> = strict.iter().map(|s| s.as_str()).collect();
                return Err(refused(format!("strict decoding error: {}", list.join(", ")), unchanged));
            }
            FieldValidation::Warn => strict.into_iter().for_each(|e| call.ctx.warnings.add(e.clone())),
            _ => {}
        }
        let mut object = with(decoded.value, unchanged);
        if custom.is_some() {
            check_type(&object, shape)?;
        }
        decode::stamp(&mut object, shape);
        Ok(object)
    }

    /// Takes out of a patched tree the fields at its top that are equal to those of the tree before.
    fn take_unchanged(&self, patched: &mut Value, current: &Value) -> Map<String, Value> {
        let (Some(patched), Some(current)) = (patched.as_object_mut(), current.as_object()) else { return Map::new() };
        // A merge patch says at its top what it leaves alone; after others it takes a look.
        let untouched = |key: &str| self.kind == PatchKind::Merge && self.value.get(key).is_none();
        let same: Vec<String> = patched
            .iter()
            .filter(|(k, v)| untouched(k) || current.get(*k) == Some(*v))
            .map(|(k, _)| k.clone())
            .collect();
        same.into_iter().filter_map(|key| patched.remove_entry(&key)).collect()
    }

    fn apply_configuration(
        &self,
        call: &Call,
        shape: Shape<'_>,
        current: Option<&Value>,
        writer: &managed_fields::Writer<'_>,
    ) -> Result<Value, Status> {
        let object = managed_fields::apply(current, &self.value, self.options.force, writer)?;
        match self.options.field_validation {
            FieldValidation::Strict if !self.strict_errors.is_empty() => {
                let list = self.strict_errors.join("\n  ");
                let what = "error strict decoding YAML: error converting YAML to JSON";
                return Err(Status::bad_request(format!("{what}: {list}")));
            }
            FieldValidation::Warn => decode::warn(call, self.strict_errors.clone()),
            _ => {}
        }
        // What the schema of apply lets through may still be no value of its type, such as a quantity.
        let mut object = codec::json::decode_tree(&object, shape.schema)
            .map_err(|e| {
                let (DecodeError::Syntax(why) | DecodeError::Value(why)) = e;
                let who = managed_fields::describe(&self.value, writer);
                let kind = who.split_once("; ").map_or("", |(_, kind)| kind);
                let message = format!(
                    "failed to convert new object ({who}) to proper version: unable to convert unstructured object to {kind}: {why}"
                );
                Status::new(500, "", message)
            })?
            .value;
        decode::stamp(&mut object, shape);
        // Of custom resources the stored version has the defaults.
        if !call.served.custom || call.served.is_hub() {
            decode::set_defaults(call, &mut object, shape);
        }
        Ok(object)
    }
}

#[async_trait]
impl Change for Patch {
    async fn apply(&self, call: &Call, current: Option<&Value>) -> Result<Value, Status> {
        let shape = call.shape();
        let live = current.map(|c| convert::from_hub(call, c)).transpose()?;
        let mut object = Patch::apply(self, call, shape, live.as_deref(), call.subresource())?;
        if current.is_none() && !metadata::text(&object, "uid").is_empty() {
            let why = format!(
                "uid mismatch: the provided object specified uid {}, and no existing object was found",
                metadata::text(&object, "uid")
            );
            return Err(Status::conflict(call.group(), call.plural(), call.name(), &why));
        }
        metadata::ensure_namespace(&mut object, call.namespace())?;
        check_name(&object, call)?;
        convert::to_hub(call, object)
    }
}

impl Pipeline {
    pub(super) async fn patch(&self, call: &Call) -> Result<Reply, Status> {
        if super::scale::serves(call) {
            return self.patch_scale(call).await;
        }
        let patch = Patch::of_call(call)?;
        let rules = UpdateRules {
            options: &patch.options,
            subresource: call.subresource(),
            create_if_absent: patch.is_apply() && call.subresource().is_empty(),
        };
        let (outcome, created) = self.change(call, call.name(), &rules, &patch).await?;
        Ok(Reply { code: if created { 201 } else { 200 }, content: outcome.content() })
    }
}

/// A patch must not make another kind of object of a custom one.
fn check_type(object: &Value, shape: Shape<'_>) -> Result<(), Status> {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let wanted = [("apiVersion", shape.version.api_version()), ("kind", shape.kind.to_owned())];
    let wrong = wanted.into_iter().find(|(field, wanted)| text(field) != wanted);
    let Some((field, wanted)) = wrong else { return Ok(()) };
    let error = Error::invalid(&Path::root().child_named(field), text(field), format!("must be {wanted}"));
    Err(Status::invalid(&shape.version.group, text("kind"), metadata::text(object, "name"), &[error]))
}

fn with(mut tree: Value, fields: Map<String, Value>) -> Value {
    if let Some(tree) = tree.as_object_mut() {
        tree.extend(fields);
    }
    tree
}

/// The patched document as upstream's library writes it: what the patch touched has its keys sorted, the rest is as the
/// encoder wrote it. Only seen in refusals.
fn shown_document(current: &Value, patched: &Value, shape: Shape<'_>) -> String {
    let (mut current, mut patched) = (current.clone(), patched.clone());
    if shape.kind == "Scale" {
        // The owners of a scale are made up for the write and not part of it.
        metadata::remove(&mut current, "managedFields");
        metadata::remove(&mut patched, "managedFields");
    }
    let (current, patched) = (&current, &patched);
    let mut encoded = Vec::new();
    codec::json::encode(current, shape.schema, &mut encoded);
    let Ok(raw) = serde_json::from_slice::<Raw>(&encoded) else { return patched.to_string() };
    let mut out = String::new();
    write_touched(&mut out, Some(&raw), Some(current), patched);
    out
}

type Raw<'a> = std::collections::BTreeMap<String, &'a serde_json::value::RawValue>;

fn write_touched(out: &mut String, raw: Option<&Raw<'_>>, before: Option<&Value>, after: &Value) {
    let Value::Object(map) = after else {
        out.push_str(&after.to_string());
        return;
    };
    out.push('{');
    let mut keys: Vec<&String> = map.keys().collect();
    keys.sort();
    for (i, key) in keys.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        out.push_str(&json!(key).to_string());
        out.push(':');
        let (old, text) = (before.and_then(|b| b.get(key)), raw.and_then(|r| r.get(key)));
        match (old, text) {
            (Some(old), Some(text)) if *old == map[key] => out.push_str(text.get()),
            (old, text) => {
                let inner = text.and_then(|t| serde_json::from_str::<Raw<'_>>(t.get()).ok());
                write_touched(out, inner.as_ref(), old, &map[key]);
            }
        }
    }
    out.push('}');
}
