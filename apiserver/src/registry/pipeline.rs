//! The way of a write, the same for every resource (upstream: `endpoints/handlers` and `registry/generic/registry/store.go`).
//!
//! ```text
//! create  decode → hub → defaults → own metadata → managed fields → admit → name → take → prepare → validate → admission validates → commit
//! update  decode → hub → defaults → loop { current → managed fields → admit → take → prepare → validate → admission validates → commit at its revision }
//! patch   the same loop, the object made of the current one
//! delete  loop { current → preconditions → grace and finalizers → admission → commit the mark, or the end }
//! ```
//!
//! A loop begins anew with the object that a failed commit returned, unless the writer named the version it meant.

use super::allocators::{ServiceNetwork, range::NodePorts};
use super::options::Query;
use super::resource::{Resource, Virtual};
use crate::admission::{Attributes, Operation, Plugin};
use crate::authorization::Authorization;
use crate::metrics::admission::Clock;
use crate::request::Context;
use crate::resources::{Resources, Served};
use crate::store::{Object, Store};
use bytes::Bytes;
use coxswain_api::catalogue::{GroupVersion, ResourceType};
use coxswain_api::schema::StructRef;
use coxswain_api::{Status, Value};
use coxswain_storage::Revision;
use http::HeaderMap;
use std::collections::HashMap;
use std::sync::Arc;

/// How often a write starts over because others wrote in between; upstream has no bound but the request's deadline.
pub(super) const ATTEMPTS_MAX: usize = 1000;

/// Everything a write needs beside the request.
pub struct Pipeline {
    pub resources: Arc<Resources>,
    pub plugins: Vec<Arc<dyn Plugin>>,
    pub authorization: Arc<Authorization>,
    /// Creates that store nothing, by group, resource and subresource (`""` is the resource itself).
    pub virtuals: Virtuals,
    /// Where cluster IPs come from.
    pub network: ServiceNetwork,
    pub node_ports: Arc<NodePorts>,
}

pub type Virtuals = HashMap<(&'static str, &'static str, &'static str), Arc<dyn Virtual>>;

/// One request for a resource, authorized and with its body read.
#[derive(Clone)]
pub struct Call {
    pub ctx: Context,
    /// The resource in the version that the request names.
    pub served: Arc<Served>,
    pub headers: HeaderMap,
    pub query: Query,
    pub body: Bytes,
}

impl Call {
    pub fn namespace(&self) -> &str {
        // The namespace of a request for a namespace is that namespace itself; its object has none.
        if self.served.ty.namespaced { &self.ctx.info.namespace } else { "" }
    }

    pub fn name(&self) -> &str {
        &self.ctx.info.name
    }

    pub fn subresource(&self) -> &str {
        &self.ctx.info.subresource
    }

    pub fn group(&self) -> &str {
        &self.ctx.info.group
    }

    pub fn plural(&self) -> &str {
        &self.ctx.info.resource
    }

    pub fn header(&self, name: http::header::HeaderName) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    pub fn ty(&self) -> &Arc<ResourceType> {
        &self.served.ty
    }

    pub fn strategy(&self) -> &dyn Resource {
        &*self.served.strategy
    }

    /// The store of a resource that is known to have one: the catalogue gives the verbs that lead here to no other.
    pub fn store(&self) -> &Arc<Store> {
        self.served.store.as_ref().expect("a resource that is written has a store")
    }

    /// The resource in the version it is stored in.
    pub fn hub(&self) -> &Arc<ResourceType> {
        self.served.store.as_ref().map_or(&self.served.ty, |s| &s.hub)
    }

    /// The kind, version and schema of request bodies and answers: the subresource's where it has its own.
    pub fn shape(&self) -> Shape<'_> {
        let ty = self.ty();
        match ty.subresource(self.subresource()) {
            Some(sub) => Shape { version: &sub.group_version, kind: &sub.kind, schema: &sub.schema },
            None => Shape { version: &ty.group_version, kind: &ty.kind, schema: &ty.schema },
        }
    }

    /// Whether bodies are whole objects of the resource, as for the object itself and its status.
    pub fn is_whole(&self) -> bool {
        let shape = self.shape();
        shape.kind == &*self.ty().kind && shape.version == &self.ty().group_version
    }

    pub fn not_found(&self, name: &str) -> Status {
        Status::not_found(self.group(), self.plural(), name)
    }

    /// The group that validation errors name: that of the hub (core for events of either group).
    pub fn invalid(&self, object: &Value, errors: &[coxswain_api::field::Error]) -> Status {
        let hub = self.hub();
        Status::invalid(&hub.group_version.group, &hub.kind, super::metadata::text(object, "name"), errors)
    }
}

/// Kind, version and schema.
#[derive(Clone, Copy)]
pub struct Shape<'a> {
    pub version: &'a GroupVersion,
    pub kind: &'a str,
    pub schema: &'a StructRef,
}

/// The answer of a write, before it is encoded.
pub struct Reply {
    pub code: u16,
    pub content: Content,
}

pub enum Content {
    /// A version of an object of this resource, with its bytes.
    Stored(Arc<Object>),
    /// An object of this resource in the hub version that was not stored as it is: a dry run.
    Hub(Value),
    /// A tree in the version and shape of the request (a subresource's kind), or any other kind with its own
    /// `apiVersion` and `kind`.
    Tree(Value),
    /// A collection: what `deletecollection` removed.
    List { objects: Vec<Arc<Object>>, revision: Revision, next: Option<String> },
}

impl Reply {
    pub fn ok(content: Content) -> Self {
        Self { code: 200, content }
    }
}

impl Pipeline {
    /// Serves one write: `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub async fn serve(&self, call: &Call) -> Result<Reply, Status> {
        match call.ctx.info.verb.as_str() {
            "create" => self.create(call).await,
            "update" => self.update(call).await,
            "patch" => self.patch(call).await,
            "delete" => self.delete(call).await,
            "deletecollection" => self.delete_collection(call).await,
            verb => Err(Status::method_not_allowed(call.group(), call.plural(), verb)),
        }
    }

    /// Mutating admission. What it does to `managedFields` is undone if it is not valid.
    pub(super) async fn admit(
        &self,
        call: &Call,
        operation: Operation,
        options: &Value,
        name: &str,
        object: Option<&mut Value>,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let mut attributes = attributes(call, operation, options, name, object, old);
        let mut clock = Clock::start(operation, "admit");
        for plugin in self.plugins.iter().filter(|p| p.handles(operation)) {
            let admitted = plugin.admit(&mut attributes).await;
            clock.passed(plugin.name(), admitted.is_err());
            admitted?;
        }
        Ok(())
    }

    /// Validating admission. Also called by [`super::resource::Virtual`] creates before they act.
    pub async fn validate_admission(
        &self,
        call: &Call,
        operation: Operation,
        options: &Value,
        name: &str,
        object: Option<&mut Value>,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let attributes = attributes(call, operation, options, name, object, old);
        let mut clock = Clock::start(operation, "validate");
        for plugin in self.plugins.iter().filter(|p| p.handles(operation)) {
            let validated = plugin.validate(&attributes).await;
            clock.passed(plugin.name(), validated.is_err());
            validated?;
        }
        Ok(())
    }
}

fn attributes<'a>(
    call: &'a Call,
    operation: Operation,
    options: &'a Value,
    name: &'a str,
    object: Option<&'a mut Value>,
    old: Option<&'a Value>,
) -> Attributes<'a> {
    // A namespace is created in itself, as far as admission is concerned.
    let own = &*call.ty().kind == "Namespace" && operation == Operation::Create;
    Attributes {
        ctx: &call.ctx,
        operation,
        resource: call.ty(),
        subresource: call.subresource(),
        namespace: if own { name } else { call.namespace() },
        name,
        object,
        old,
        options,
    }
}

/// `deployments.apps`, or `pods` in the core group.
pub(super) fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}
