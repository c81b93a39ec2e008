//! Who owns which field, as the pipeline asks for it (upstream: `handlers/fieldmanager`).
//!
//! The reckoning itself is [`coxswain_api::managed_fields`]; here it learns the versions of the resource and the scale
//! subresource's paths.

use super::resource::ScalePaths;
use coxswain_api::catalogue::GroupVersion;
use coxswain_api::field_set::Set;
use coxswain_api::managed_fields::{self as fields, scale};
use coxswain_api::schema::{StructRef, builtin};
use coxswain_api::{Status, Value};

/// One writer of an object.
pub struct Writer<'a> {
    pub manager: &'a str,
    pub api_version: String,
    pub kind: &'a str,
    pub subresource: &'a str,
    pub now: jiff::Timestamp,
    pub schema: &'a StructRef,
    /// Paths that this writer does not come to own.
    pub reset: &'static [&'static str],
}

/// The other versions of the writer's kind. Those of a custom resource differ in no more than their name.
struct Siblings<'a>(&'a Writer<'a>);

impl fields::Versions for Siblings<'_> {
    fn schema(&self, api_version: &str) -> Option<StructRef> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let own_group = self.0.api_version.split_once('/').map_or("", |(group, _)| group);
        if self.0.schema.name.is_empty() && group == own_group {
            return Some(self.0.schema.clone());
        }
        builtin().kind(group, version, self.0.kind).cloned()
    }

    fn convert(&self, object: &Value, api_version: &str) -> Option<Value> {
        let mut object = object.clone();
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        coxswain_api::conversion::convert(&mut object, &GroupVersion { group: group.into(), version: version.into() });
        Some(object)
    }
}

impl Writer<'_> {
    fn write<T>(&self, act: impl FnOnce(&fields::Write<'_>) -> T) -> T {
        let reset = Set::of_fields(self.reset);
        act(&fields::Write {
            schema: self.schema,
            api_version: &self.api_version,
            kind: self.kind,
            manager: self.manager,
            subresource: self.subresource,
            reset: (!reset.is_empty()).then_some(&reset),
            versions: &Siblings(self),
            now: self.now,
        })
    }
}

/// Brings the list of the new object up to date after any write but an apply; `live` is none on create.
pub fn update(live: Option<&Value>, object: &mut Value, writer: &Writer<'_>) {
    writer.write(|write| fields::update(write, live, object));
}

/// The live object with a configuration merged in. It is to be made canonical and defaulted by the caller.
pub fn apply(live: Option<&Value>, config: &Value, force: bool, writer: &Writer<'_>) -> Result<Value, Status> {
    writer.write(|write| fields::apply(write, live, config, force)).map(|applied| applied.object)
}

/// How a configuration is named in the refusal of what came of it.
pub fn describe(config: &Value, writer: &Writer<'_>) -> String {
    writer.write(|write| fields::describe(config, write))
}

/// Translates managed fields between an object and its scale.
pub struct ScaleHandler {
    entries: Option<Value>,
    api_version: String,
    /// Where a custom resource keeps its replicas.
    custom: Option<Vec<String>>,
}

const REPLICAS: &[&str] = &["spec", "replicas"];

/// Where every workload that scales keeps its number of replicas.
const PATHS: scale::Mappings<'static> = &[("v1", Some(REPLICAS)), ("apps/v1", Some(REPLICAS))];

impl ScaleHandler {
    pub fn new(object: &Value, api_version: &str, paths: Option<&ScalePaths>) -> Self {
        let entries = fields::entries_of(object).cloned();
        Self { entries, api_version: api_version.to_owned(), custom: paths.map(|p| p.spec.clone()) }
    }

    fn with_mappings<R>(&self, then: impl FnOnce(scale::Mappings<'_>) -> R) -> R {
        let Some(path) = &self.custom else { return then(PATHS) };
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        then(&[(&self.api_version, Some(&path))])
    }

    /// Gives the scale the entries of whoever owns the number of replicas.
    pub fn to_subresource(&self, scale: &mut Value) {
        // A list that cannot be read is as good as none, as everywhere.
        fields::set_entries(
            scale,
            self.with_mappings(|m| scale::to_scale(self.entries.as_ref(), m)).unwrap_or_default(),
        );
    }

    /// Gives the object the entries that follow from what a write left in the scale.
    pub fn to_parent(&self, scale: &Value, object: &mut Value) {
        let scaled = fields::entries_of(scale);
        let entries = self.with_mappings(|m| scale::to_parent(self.entries.as_ref(), scaled, &self.api_version, m));
        if let Ok(entries) = entries {
            fields::set_entries(object, entries);
        }
    }
}
