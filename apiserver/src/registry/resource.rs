//! What a resource says of itself; everything else is the pipeline's (upstream: `rest.RESTCreateUpdateStrategy` and
//! `registry/generic/registry.Store`).
//!
//! A resource works on the tree in its *hub* version (the storage version). Every method has upstream's usual behaviour as
//! its default, so that a resource only says what is its own.

use crate::request::Context;
use coxswain_api::Value;
use coxswain_api::field::ErrorList;

/// One resource, erased: built-in kinds and custom resources alike.
pub trait Resource: Send + Sync + 'static {
    /// Fills in what is not given, beyond the defaults that the schema itself states. Also applied to what is read from
    /// storage, so it must not depend on anything but the object (upstream: `SetDefaults_…`).
    fn set_defaults(&self, _object: &mut Value) {}

    /// Clears what a creator may not set and sets what the server owns (upstream: `PrepareForCreate`). The pipeline has
    /// already set `metadata.generation` to 1 if [`Resource::has_generation`], and dropped `status` if the resource has a
    /// status subresource and [`Resource::keeps_status_on_create`] is false.
    fn prepare_for_create(&self, _ctx: &Context, _object: &mut Value) {}

    /// Restores what this writer may not change. `subresource` is `""` for the object itself. The pipeline has already
    /// restored `status` on writes of the object, everything but `status` (and the metadata that upstream's
    /// `ResetObjectMetaForStatus` lets through) on writes of the status, and raised `metadata.generation` if `spec` changed.
    fn prepare_for_update(&self, _ctx: &Context, _object: &mut Value, _old: &Value, _subresource: &str) {}

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Orphan,
}

/// A column of a Table (upstream: `metav1.TableColumnDefinition`).
#[derive(Clone, Debug)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: &'static str,
    pub format: &'static str,
    pub description: &'static str,
    /// 0 is shown always, 1 with `-o wide`.
    pub priority: i32,
}
