//! What a resource says of itself; everything else is the pipeline's (upstream: `rest.RESTCreateUpdateStrategy` and
//! `registry/generic/registry.Store`).
//!
//! A resource works on the tree in its *hub* version (the storage version). Every method has upstream's usual behaviour as
//! its default, so that a resource only says what is its own.

use crate::registry::gated::Fields;
use crate::registry::pipeline::{Call, Pipeline};
use crate::request::Context;
use async_trait::async_trait;
use coxswain_api::field::ErrorList;
use coxswain_api::structural::Structural;
use coxswain_api::{Status, Value};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::time::Duration;

/// One resource, erased: built-in kinds and custom resources alike.
pub trait Resource: Send + Sync + 'static {
    /// The schema by which objects are pruned; none for built-in kinds, whose schema the decoder knows.
    fn structural(&self) -> Option<&Structural> {
        None
    }

    /// The schema of this version as the definition has it, for OpenAPI.
    fn open_api(&self) -> Option<&OpenApiSchema> {
        None
    }

    /// Where a custom resource has its scale; built-in kinds have it in `spec.replicas`.
    fn scale_paths(&self) -> Option<&ScalePaths> {
        None
    }

    /// Fills in what is not given, beyond the defaults that the schema itself states. Also applied to what is read from
    /// storage, so it must not depend on anything but the object (upstream: `SetDefaults_…`).
    fn set_defaults(&self, _object: &mut Value) {}

    /// The parts of an object, as JSON pointers, that have fields of features which can be off. The pipeline drops these before it
    /// prepares what is written.
    fn gated_fields(&self) -> &'static [(&'static str, Fields)] {
        &[]
    }

    /// Clears what a creator may not set and sets what the server owns (upstream: `PrepareForCreate`). The pipeline has
    /// already set `metadata.generation` to 1 if [`Resource::has_generation`], and dropped `status` if the resource has a
    /// status subresource and [`Resource::keeps_status_on_create`] is false.
    fn prepare_for_create(&self, _ctx: &Context, _object: &mut Value) {}

    /// Restores what this writer may not change. `subresource` is `""` for the object itself. The pipeline has already
    /// restored `status` on writes of the object, everything but `status` (and the metadata that upstream's
    /// `ResetObjectMetaForStatus` lets through) on writes of the status, and raised `metadata.generation` if `spec` changed.
    fn prepare_for_update(&self, _ctx: &Context, _object: &mut Value, _old: &Value, _subresource: &str) {}

    /// Brings a valid object into the one form in which it is stored (upstream: `Canonicalize`).
    fn canonicalize(&self, _object: &mut Value) {}

    /// Everything that is wrong with a new object, except its `metadata`, which the pipeline checks.
    fn validate(&self, _ctx: &Context, _object: &Value) -> ErrorList {
        ErrorList::new()
    }

    /// Everything that is wrong with a change, except `metadata`.
    fn validate_update(&self, ctx: &Context, object: &Value, _old: &Value, _subresource: &str) -> ErrorList {
        self.validate(ctx, object)
    }

    /// Sentences for `Warning` headers.
    fn warnings(&self, _ctx: &Context, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// The same for a write of the status; most kinds keep silent there.
    fn status_warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// The warning that every request for the version earns, if it is deprecated by its definition.
    fn deprecation(&self) -> Option<&str> {
        None
    }

    /// How `metadata.name` is checked: returns what is wrong with it, in upstream's words. `prefix` means that it is a
    /// `generateName`.
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        coxswain_api::names::dns1123_subdomain(name, prefix)
    }

    /// `metadata.generation` counts changes of `spec`.
    fn has_generation(&self) -> bool {
        false
    }

    /// Whether a creator may set `status` although the resource has a status subresource.
    fn keeps_status_on_create(&self) -> bool {
        false
    }

    /// PUT of a name that does not exist creates it.
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// PUT without `metadata.resourceVersion` overwrites.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// How long deletion is graceful, in seconds; none if this resource is deleted at once
    /// (upstream: `CheckGracefulDelete`). `asked` is `gracePeriodSeconds` of the request.
    fn grace_period_seconds(&self, _object: &Value, _asked: Option<i64>) -> Option<i64> {
        None
    }

    /// What `propagationPolicy` is when the request says nothing: `background` unless said otherwise; `orphan` for
    /// ReplicationControllers and Jobs.
    fn default_propagation(&self, _object: &Value) -> Propagation {
        Propagation::Background
    }

    /// A sentence for a `Warning` header of a deletion that leaves the propagation policy open.
    fn open_propagation_warning(&self) -> Option<&'static str> {
        None
    }

    /// Whether deletion answers with the object that was deleted instead of a `Status`
    /// (upstream: `ReturnDeletedObject`).
    fn returns_deleted_object(&self) -> bool {
        false
    }

    /// Whether [`Resource::validate`] checks the metadata of a new object itself.
    fn validates_metadata(&self) -> bool {
        false
    }

    /// Finalizers without a domain must be one of the three that Kubernetes itself uses. Custom resources are free.
    fn restricts_finalizers(&self) -> bool {
        true
    }

    /// After how long the store forgets the object (events).
    fn ttl(&self, _object: &Value) -> Option<Duration> {
        None
    }

    /// Whether `metadata.generation` rises with this change: by default when anything but `metadata` and `status` differs.
    /// Asked only if [`Resource::has_generation`], and not for writes of the status.
    fn spec_changed(&self, object: &Value, old: &Value) -> bool {
        let wanted = |v: &Value| -> Vec<(String, Value)> {
            let map = v.as_object().cloned().unwrap_or_default();
            let own = |k: &str| !matches!(k, "metadata" | "status" | "kind" | "apiVersion");
            map.into_iter().filter(|(k, _)| own(k)).collect()
        };
        wanted(object) != wanted(old)
    }

    /// What a write of the status may not change in the metadata, for the kinds whose strategy restores it
    /// (see [`super::metadata::reset_for_status`]).
    fn reset_for_status(&self, _object: &mut Value, _old: &Value) {}

    /// Which checks of the metadata the strategy makes again after the pipeline, so that their causes come twice.
    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: false, whole_first: false }
    }

    /// Whether a deleting object goes when an update takes its last finalizer (upstream: `ShouldDeleteDuringUpdate`).
    fn delete_during_update(&self, _object: &Value) -> bool {
        true
    }

    /// How this object is deleted, when it is not just deleted. May change the object, which is then stored.
    fn delete_rule(&self, _ctx: &Context, _object: &mut Value) -> DeleteRule {
        DeleteRule::Usual
    }

    /// Deletion may be graceful: a second deletion of an object whose grace period runs shortens it or does nothing.
    fn is_graceful(&self) -> bool {
        false
    }

    /// What must be taken before a write and given back if it fails: cluster IPs and node ports.
    fn hooks(&self) -> Option<&dyn Hooks> {
        None
    }

    /// Whether dependents may be orphaned or awaited at all (upstream: `EnableGarbageCollection` and
    /// `GarbageCollectionPolicy` `Unsupported`, as events have it).
    fn garbage_collected(&self) -> bool {
        true
    }

    /// Field selectors beyond `metadata.name` and `metadata.namespace`: label and value, every label always.
    fn selectable_fields(&self, _object: &Value) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// The labels of [`Resource::selectable_fields`].
    fn selectable_labels(&self) -> &'static [&'static str] {
        &[]
    }

    /// The columns after `Name`… as upstream's printers have them, `Name` included.
    fn columns(&self) -> Vec<Column> {
        Column::name_and_age()
    }

    /// The cells of an object's row, one for each column.
    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        crate::registry::table::name_and_age(object, now)
    }

    /// Paths (such as `status` or `spec.nodeName`) that writes of this subresource (`""` is the object) leave alone, so
    /// that their manager does not come to own them (upstream: `GetResetFields`). By default `status` for the object and
    /// `spec` for the status, where there is a status subresource.
    fn reset_fields(&self, _subresource: &str) -> Option<&'static [&'static str]> {
        None
    }
}

/// The schema of a custom resource as its definition has it: kept as compressed text, for a tree takes fifty times the room, and
/// few of many definitions are looked at.
#[derive(Debug)]
pub struct OpenApiSchema {
    packed: Box<[u8]>,
    pub hash: [u8; 32],
}

impl OpenApiSchema {
    pub fn new(schema: &Value) -> Self {
        use std::io::Write;
        let text = schema.to_string();
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text.as_bytes()).expect("writing to memory does not fail");
        let packed = encoder.finish().expect("writing to memory does not fail");
        Self { packed: packed.into(), hash: Sha256::digest(text.as_bytes()).into() }
    }

    pub fn tree(&self) -> Value {
        use std::io::Read;
        let mut text = Vec::new();
        flate2::read::ZlibDecoder::new(&*self.packed).read_to_end(&mut text).expect("what was packed can be unpacked");
        coxswain_api::codec::json::read_back(&text).expect("the text was made of a tree")
    }
}

/// See [`Resource::delete_rule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteRule {
    /// By grace period and finalizers.
    Usual,
    /// Store the changed object; it is deleted later.
    Mark,
    /// Nothing happens; the answer is the object as it is.
    Wait,
}

/// See [`Resource::repeats_metadata_checks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataChecks {
    /// What no change may do.
    pub update: bool,
    /// What every object must satisfy.
    pub whole: bool,
    /// The whole comes before the change.
    pub whole_first: bool,
}

/// Side effects of a write that must hold together with it (upstream: `BeginCreate`, `BeginUpdate`, `AfterDelete`).
#[async_trait]
pub trait Hooks: Send + Sync {
    /// Called before `prepare_for_…`; `old` is none on create. May fill in what it took. What it took is kept by
    /// [`Taken::keep`] when the write was committed and given back when the value is dropped before.
    async fn begin(
        &self,
        pipeline: &Pipeline,
        call: &Call,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<Box<dyn Taken>, Status>;

    /// Called for a write of the status: whether this writer may change it so, beyond having the right to write it.
    async fn authorize_status(
        &self,
        _pipeline: &Pipeline,
        _call: &Call,
        _object: &Value,
        _old: &Value,
    ) -> Result<(), Status> {
        Ok(())
    }

    /// The object is gone.
    async fn after_delete(&self, _pipeline: &Pipeline, _call: &Call, _object: &Value) {}
}

/// Something taken for a write that is not committed yet; dropping it gives it back.
pub trait Taken: Send {
    fn keep(self: Box<Self>);
}

/// A resource or subresource whose create stores nothing under its own name: reviews, tokens, bindings, evictions.
///
/// The object arrives decoded, defaulted, in the requested version, with `metadata.namespace` set. Mutating admission has
/// run; the implementation validates, and calls [`Pipeline::validate_admission`] before it acts.
#[async_trait]
pub trait Virtual: Send + Sync + 'static {
    /// Fills in what is not given, beyond the defaults that the schema itself states.
    fn set_defaults(&self, _object: &mut Value) {}

    /// `name` is that of the parent for a subresource and empty for a resource. The answer is a tree of the same kind,
    /// or a `Status`.
    async fn create(&self, pipeline: &Pipeline, call: &Call, name: &str, object: Value) -> Result<Value, Status>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Orphan,
}

/// The paths of `subresources.scale` of a definition, as steps.
#[derive(Clone, Debug)]
pub struct ScalePaths {
    pub spec: Vec<String>,
    pub status: Vec<String>,
    pub selector: Vec<String>,
}

impl ScalePaths {
    /// The value at a path of names.
    pub fn get<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
        path.iter().try_fold(object, |at, name| at.get(name)).filter(|v| !v.is_null())
    }

    /// A path as upstream writes it.
    pub fn text(path: &[String]) -> String {
        path.iter().map(|step| format!(".{step}")).collect()
    }
}

/// A column of a Table (upstream: `metav1.TableColumnDefinition`).
#[derive(Clone, Debug)]
pub struct Column {
    pub name: Cow<'static, str>,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: Cow<'static, str>,
    pub format: Cow<'static, str>,
    pub description: Cow<'static, str>,
    /// 0 is shown always, 1 with `-o wide`.
    pub priority: i32,
}
