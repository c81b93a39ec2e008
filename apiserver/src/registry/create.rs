//! POST: a new object (upstream: `handlers/create.go`, `rest.BeforeCreate`, `Store.create`).

use super::metadata;
use super::options::{OptionsKind, WriteOptions};
use super::pipeline::{Call, Content, Pipeline, Reply};
use super::resource::Taken;
use super::{convert, decode, gated, managed_fields};
use crate::admission::Operation;
use crate::store::{CommitError, Object};
use coxswain_api::field::ErrorList;
use coxswain_api::{Status, Value, names};
use std::sync::Arc;

/// How many names are tried before a `generateName` is given up.
const NAME_ATTEMPTS_MAX: usize = 8;

/// What came of a write: stored, or only imagined.
pub(super) enum Outcome {
    Stored(Arc<Object>),
    DryRun(Value),
}

impl Outcome {
    pub(super) fn content(self) -> Content {
        match self {
            Outcome::Stored(object) => Content::Stored(object),
            Outcome::DryRun(tree) => Content::Hub(tree),
        }
    }
}

impl Pipeline {
    pub(super) async fn create(&self, call: &Call) -> Result<Reply, Status> {
        let options = WriteOptions::of_query(&call.query, OptionsKind::Create)?;
        let shape = call.shape();
        let mut object = decode::object(call, &options, shape)?;
        let virtual_create = self.virtuals.get(&(call.group(), call.plural(), call.subresource()));

        let mut name = call.name().to_owned();
        if name.is_empty() {
            name = metadata::text(&object, "name").to_owned();
        }
        if virtual_create.is_none() || call.subresource().is_empty() {
            metadata::wipe_system_fields(&mut object);
        }
        metadata::ensure_namespace(&mut object, call.namespace())?;
        metadata::dedup_owner_references(&mut object, &call.ctx.warnings, false);
        if let Some(virtual_create) = virtual_create {
            let admission_options = options.admission_object("CreateOptions");
            virtual_create.set_defaults(&mut object);
            managed_fields::update(None, &mut object, &super::update::writer(call));
            self.admit(call, Operation::Create, &admission_options, &name, Some(&mut object), None).await?;
            let tree = virtual_create.create(self, call, &name, object).await?;
            return Ok(Reply { code: 201, content: Content::Tree(tree) });
        }
        let outcome = self.create_decoded(call, object, &options).await?;
        Ok(Reply { code: 201, content: outcome.content() })
    }

    /// From a decoded object in the version of the request to a stored one.
    pub(super) async fn create_decoded(
        &self,
        call: &Call,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Outcome, Status> {
        let admission_options = options.admission_object("CreateOptions");
        let name = match call.name() {
            "" => metadata::text(&object, "name").to_owned(),
            name => name.to_owned(),
        };
        let mut object = convert::settle(call, object)?;
        managed_fields::update(None, &mut object, &super::update::writer(call));
        let mut object = convert::to_hub(call, object)?;
        self.admit(call, Operation::Create, &admission_options, &name, Some(&mut object), None).await?;
        metadata::dedup_owner_references(&mut object, &call.ctx.warnings, true);

        let generates =
            metadata::text(&object, "name").is_empty() && !metadata::text(&object, "generateName").is_empty();
        let mut attempt = 1;
        loop {
            let candidate =
                if generates && attempt < NAME_ATTEMPTS_MAX { object.clone() } else { std::mem::take(&mut object) };
            match self.create_object(call, candidate, options, &admission_options).await {
                Err(status) if generates && status.is_already_exists() && attempt < NAME_ATTEMPTS_MAX => attempt += 1,
                other => return other,
            }
        }
    }

    /// From an admitted object in the hub version to a stored one.
    pub(super) async fn create_object(
        &self,
        call: &Call,
        mut object: Value,
        options: &WriteOptions,
        admission_options: &Value,
    ) -> Result<Outcome, Status> {
        let generated = metadata::text(&object, "generateName").to_owned();
        if !generated.is_empty() && metadata::text(&object, "name").is_empty() {
            metadata::set(&mut object, "name", names::generate(&generated, rand::random()));
        }
        let taken = self.prepare_create(call, &mut object).await?;
        let name = metadata::text(&object, "name").to_owned();
        self.validate_admission(call, Operation::Create, admission_options, &name, Some(&mut object), None).await?;
        let store = call.store();
        if options.dry_run {
            return match store.get(call.namespace(), &name).await? {
                Some(existing) => Err(exists(call, &name, &generated, &existing)),
                None => Ok(Outcome::DryRun(object)),
            };
        }
        if !metadata::text(&object, "resourceVersion").is_empty() {
            let mut status = Status::new(500, "", "resourceVersion should not be set on objects to be created");
            status.details = None;
            return Err(status);
        }
        match store.create(call.namespace(), &name, &object, call.strategy().ttl(&object)).await {
            Ok(stored) => {
                if let Some(taken) = taken {
                    taken.keep();
                }
                store.remember(&stored, object);
                Ok(Outcome::Stored(stored))
            }
            Err(CommitError::Conflict(Some(existing))) => Err(exists(call, &name, &generated, &existing)),
            Err(CommitError::Conflict(None)) => Err(Status::already_exists(call.group(), call.plural(), &name)),
            Err(CommitError::Refused(status)) => Err(status),
        }
    }

    /// Identity, what the strategy adds and takes away, and validation (upstream: `BeginCreate`, `BeforeCreate`).
    async fn prepare_create(&self, call: &Call, object: &mut Value) -> Result<Option<Box<dyn Taken>>, Status> {
        let strategy = call.strategy();
        metadata::fill_system_fields(object, call.ctx.now);
        let taken = match strategy.hooks() {
            Some(hooks) => Some(hooks.begin(self, call, object, None).await?),
            None => None,
        };
        metadata::ensure_namespace(object, call.namespace())?;
        if strategy.has_generation() {
            metadata::set(object, "generation", 1);
        }
        if call.ty().subresource("status").is_some()
            && !strategy.keeps_status_on_create()
            && let Some(object) = object.as_object_mut()
        {
            object.remove("status");
        }
        for (pointer, fields) in strategy.gated_fields() {
            gated::drop_disabled(object, None, pointer, fields);
        }
        strategy.prepare_for_create(&call.ctx, object);
        let mut errors = ErrorList::new();
        if !strategy.validates_metadata() {
            errors = metadata::validate_for(strategy, object, call.ty().namespaced);
        }
        errors.extend(strategy.validate(&call.ctx, object));
        if errors.is_empty() {
            errors = metadata::validate(object, call.ty().namespaced, &names::path_segment);
        }
        if !errors.is_empty() {
            return Err(call.invalid(object, &errors));
        }
        for warning in strategy.warnings(&call.ctx, object, None) {
            call.ctx.warnings.add(warning);
        }
        strategy.canonicalize(object);
        coxswain_api::codec::canonicalize(object, &call.hub().schema);
        Ok(taken)
    }
}

/// The name is taken (upstream: `CheckGeneratedNameError`).
fn exists(call: &Call, name: &str, generated: &str, existing: &Object) -> Status {
    let mut status = Status::already_exists(call.group(), call.plural(), name);
    if !generated.is_empty() {
        status.message = format!(
            "{} {} already exists, the server was not able to generate a unique name for the object",
            super::pipeline::qualified(call.group(), call.plural()),
            coxswain_api::field::go_quote(name)
        );
        if let Some(details) = &mut status.details {
            details.retry_after_seconds = 1;
        }
    }
    if metadata::is_deleting(&existing.tree()) {
        status.message = format!("object is being deleted: {}", status.message);
    }
    status
}
