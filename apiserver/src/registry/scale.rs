//! The `scale` subresource: `autoscaling/v1` `Scale` over the replicas of a workload (upstream: `ScaleREST` of
//! `pkg/registry/apps/*/storage` and `pkg/registry/core/replicationcontroller/storage`).

use super::create::Outcome;
use super::options::{OptionsKind, WriteOptions};
use super::patch::Patch;
use super::pipeline::{Call, Content, Pipeline, Reply};
use super::resource::{Resource, ScalePaths};
use super::update::{Change, UpdateRules, check_name};
use super::{convert, decode, managed_fields, metadata};
use crate::admission::Operation;
use async_trait::async_trait;
use coxswain_api::field::{Error, ErrorList, Path};
use coxswain_api::{Map, Status, Value, json, selector};
use parking_lot::Mutex;

/// Whether a request is for a scale that is made of replicas.
pub fn serves(call: &Call) -> bool {
    call.subresource() == "scale"
}

/// The scale of an object in the version that is served.
pub fn of_object(object: &Value) -> Value {
    let mut meta = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.get("metadata").and_then(|m| m.get(field)) {
            meta.insert(field.into(), value.clone());
        }
    }
    let spec = object.get("spec");
    let number = |v: Option<&Value>| v.and_then(Value::as_i64).unwrap_or(0);
    let replicas = number(spec.and_then(|s| s.get("replicas")));
    let mut scale_spec = Map::new();
    if replicas != 0 {
        scale_spec.insert("replicas".into(), replicas.into());
    }
    let mut status = Map::new();
    status.insert("replicas".into(), number(object.pointer("/status/replicas")).into());
    let text = selector_text(spec.and_then(|s| s.get("selector")));
    if !text.is_empty() {
        status.insert("selector".into(), text.into());
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": meta, "spec": scale_spec, "status": status})
}

/// The scale of an object of any resource. `strict`: replicas that are not there are an error, as for reading.
pub fn of_resource(strategy: &dyn Resource, object: &Value, strict: bool) -> Result<Value, Status> {
    let Some(paths) = strategy.scale_paths() else { return Ok(of_object(object)) };
    let spec = ScalePaths::get(object, &paths.spec);
    if strict && spec.is_none() {
        let path = coxswain_api::field::go_quote(&ScalePaths::text(&paths.spec));
        return Err(Status::internal(format!("the spec replicas field {path} does not exist")));
    }
    let number = |v: Option<&Value>| v.and_then(Value::as_i64).unwrap_or(0);
    let mut scale = of_object(object);
    scale["spec"] = match number(spec) {
        0 => json!({}),
        replicas => json!({"replicas": replicas}),
    };
    scale["status"] = json!({"replicas": number(ScalePaths::get(object, &paths.status))});
    if let Some(selector) = ScalePaths::get(object, &paths.selector).filter(|_| !paths.selector.is_empty()) {
        scale["status"]["selector"] = selector.clone();
    }
    Ok(scale)
}

/// Writes the replicas where the resource has them.
fn set_replicas(strategy: &dyn Resource, object: &mut Value, replicas: i64) {
    let usual = ["spec".to_owned(), "replicas".to_owned()];
    let path = strategy.scale_paths().map_or(&usual[..], |p| &p.spec);
    let Some((last, parents)) = path.split_last() else { return };
    let mut at = object;
    for step in parents {
        let Some(map) = at.as_object_mut() else { return };
        at = map.entry(step.clone()).or_insert_with(|| json!({}));
    }
    if let Some(map) = at.as_object_mut() {
        map.insert(last.clone(), replicas.into());
    }
}

/// A selector as text: ReplicationControllers have a plain map, the others a LabelSelector.
fn selector_text(value: Option<&Value>) -> String {
    let Some(value) = value else { return String::new() };
    let plain = value.as_object().is_some_and(|m| m.values().all(Value::is_string));
    let object = if plain { json!({ "matchLabels": value }) } else { value.clone() };
    selector::Selector::from_label_selector(Some(&object)).map(|s| s.to_string()).unwrap_or_default()
}

fn validate(scale: &Value) -> ErrorList {
    let mut errors =
        metadata::validate(scale, true, &|name, prefix| coxswain_api::names::dns1123_subdomain(name, prefix));
    let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    if replicas < 0 {
        let path = Path::new("spec").child("replicas");
        errors.push(Error::invalid(&path, replicas, "must be greater than or equal to 0"));
    }
    errors
}

enum Source {
    Put(Value),
    Patch(Patch),
}

struct ScaleChange<'a> {
    pipeline: &'a Pipeline,
    source: Source,
    admission_options: Value,
    /// The scales before and after, which validating admission sees.
    scales: Mutex<Option<(Value, Value)>>,
}

#[async_trait]
impl Change for ScaleChange<'_> {
    fn uid(&self) -> Option<&str> {
        match &self.source {
            Source::Put(scale) => Some(metadata::text(scale, "uid")).filter(|uid| !uid.is_empty()),
            Source::Patch(_) => None,
        }
    }

    async fn apply(&self, call: &Call, current: Option<&Value>) -> Result<Value, Status> {
        let Some(current) = current else { return Err(call.not_found(call.name())) };
        let live = convert::from_hub(call, current)?;
        let api_version = call.ty().group_version.api_version();
        let handler = managed_fields::ScaleHandler::new(&live, &api_version, call.strategy().scale_paths());
        let mut old_scale = of_resource(call.strategy(), &live, false)?;
        handler.to_subresource(&mut old_scale);
        let shape = call.shape();
        let mut scale = match &self.source {
            Source::Put(scale) => {
                let mut scale = scale.clone();
                let writer = managed_fields::Writer {
                    manager: &call.ctx.field_manager,
                    api_version: shape.version.api_version(),
                    kind: shape.kind,
                    subresource: "scale",
                    now: call.ctx.now,
                    schema: shape.schema,
                    reset: &[],
                };
                managed_fields::update(Some(&old_scale), &mut scale, &writer);
                scale
            }
            Source::Patch(patch) => {
                let mut scale = patch.apply(call, shape, Some(&old_scale), "scale")?;
                metadata::ensure_namespace(&mut scale, call.namespace())?;
                check_name(&scale, call)?;
                scale
            }
        };
        let options = &self.admission_options;
        self.pipeline.admit(call, Operation::Update, options, call.name(), Some(&mut scale), Some(&old_scale)).await?;
        // Custom resources check their replicas themselves.
        let errors = if call.served.custom { ErrorList::new() } else { validate(&scale) };
        if !errors.is_empty() {
            return Err(Status::invalid("autoscaling", "Scale", metadata::text(&scale, "name"), &errors));
        }
        let mut object = live.into_owned();
        match metadata::text(&scale, "resourceVersion") {
            // The scale of a custom resource may be replaced whatever its version.
            "" if call.served.custom => {}
            "" => metadata::remove(&mut object, "resourceVersion"),
            version => metadata::set(&mut object, "resourceVersion", version),
        }
        let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
        set_replicas(call.strategy(), &mut object, replicas);
        handler.to_parent(&scale, &mut object);
        *self.scales.lock() = Some((scale, old_scale));
        convert::to_hub(call, object)
    }

    fn admits_object(&self) -> bool {
        false
    }

    async fn validate(&self, pipeline: &Pipeline, call: &Call, _new: &Value, _old: &Value) -> Result<(), Status> {
        let Some((mut scale, old)) = self.scales.lock().take() else { return Ok(()) };
        let options = &self.admission_options;
        pipeline.validate_admission(call, Operation::Update, options, call.name(), Some(&mut scale), Some(&old)).await
    }
}

impl Pipeline {
    pub(super) async fn update_scale(&self, call: &Call) -> Result<Reply, Status> {
        let options = WriteOptions::of_query(&call.query, OptionsKind::Update)?;
        let mut scale = decode::object(call, &options, call.shape())?;
        metadata::ensure_namespace(&mut scale, call.namespace())?;
        check_name(&scale, call)?;
        self.change_scale(call, &options, Source::Put(scale)).await
    }

    pub(super) async fn patch_scale(&self, call: &Call) -> Result<Reply, Status> {
        let patch = Patch::of_call(call)?;
        let options = patch.options().clone();
        self.change_scale(call, &options, Source::Patch(patch)).await
    }

    async fn change_scale(&self, call: &Call, options: &WriteOptions, source: Source) -> Result<Reply, Status> {
        let change = ScaleChange {
            pipeline: self,
            source,
            admission_options: options.admission_object("UpdateOptions"),
            scales: Mutex::new(None),
        };
        let rules = UpdateRules { options, subresource: "scale", create_if_absent: false };
        let (outcome, _) = self.change(call, call.name(), &rules, &change).await?;
        let object = match outcome {
            Outcome::Stored(object) => object.to_tree(),
            Outcome::DryRun(tree) => tree,
        };
        let object = convert::from_hub(call, &object)?;
        let scale = of_resource(call.strategy(), &object, false)?;
        Ok(Reply::ok(Content::Tree(scale)))
    }
}
