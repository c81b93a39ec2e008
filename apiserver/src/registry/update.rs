//! PUT, and the loop that every change of a stored object goes through (upstream: `handlers/update.go`,
//! `rest.BeforeUpdate`, `Store.Update`, `GuaranteedUpdate`).

use super::create::Outcome;
use super::metadata;
use super::options::{OptionsKind, WriteOptions};
use super::pipeline::{ATTEMPTS_MAX, Call, Pipeline, Reply};
use super::{convert, decode, gated, managed_fields};
use crate::admission::Operation;
use crate::store::{CommitError, Object};
use async_trait::async_trait;
use coxswain_api::field::{Error, ErrorList, Path};
use coxswain_api::managed_fields::ignore_timestamps;
use coxswain_api::{Status, Value};
use std::sync::Arc;

/// What makes the new object of the current one. It is asked again whenever the current one turns out to have changed.
#[async_trait]
pub(super) trait Change: Send + Sync {
    /// The uid that the writer believes the object has.
    fn uid(&self) -> Option<&str> {
        None
    }

    /// The new object in the hub version, managed fields brought up to date; `current` is none if there is no object, and
    /// then the answer is an object to create.
    async fn apply(&self, call: &Call, current: Option<&Value>) -> Result<Value, Status>;

    /// Whether the object given to admission is the one that is stored. Not so for `scale`, which lets admission see
    /// scales only.
    fn admits_object(&self) -> bool {
        true
    }

    /// Validating admission for changes that show it something else than the object.
    async fn validate(&self, _pipeline: &Pipeline, _call: &Call, _new: &Value, _old: &Value) -> Result<(), Status> {
        Ok(())
    }
}

/// How a change is made.
pub(super) struct UpdateRules<'a> {
    pub(super) options: &'a WriteOptions,
    /// `status` and the like; decides what of the new object counts.
    pub(super) subresource: &'a str,
    pub(super) create_if_absent: bool,
}

impl Pipeline {
    pub(super) async fn update(&self, call: &Call) -> Result<Reply, Status> {
        if super::scale::serves(call) {
            return self.update_scale(call).await;
        }
        let options = WriteOptions::of_query(&call.query, OptionsKind::Update)?;
        let mut object = decode::object(call, &options, call.shape())?;
        metadata::ensure_namespace(&mut object, call.namespace())?;
        check_name(&object, call)?;
        metadata::dedup_owner_references(&mut object, &call.ctx.warnings, false);
        let rules = UpdateRules {
            options: &options,
            subresource: call.subresource(),
            create_if_absent: call.subresource().is_empty() && call.strategy().allow_create_on_update(),
        };
        let (outcome, created) = self.change(call, call.name(), &rules, &Replace { object }).await?;
        Ok(Reply { code: if created { 201 } else { 200 }, content: outcome.content() })
    }

    /// Applies a change to the current object until it can be committed. Says also whether the object was created.
    pub(super) async fn change(
        &self,
        call: &Call,
        name: &str,
        rules: &UpdateRules<'_>,
        change: &dyn Change,
    ) -> Result<(Outcome, bool), Status> {
        let store = call.store();
        let mut current = store.get(call.namespace(), name).await?;
        for _ in 0..ATTEMPTS_MAX {
            let done = match &current {
                None => self.change_absent(call, name, rules, change).await,
                Some(current) => self.change_once(call, name, rules, change, current).await,
            };
            match done {
                Ok(done) => return Ok(done),
                Err(CommitError::Conflict(now)) => current = now,
                Err(CommitError::Refused(status)) => return Err(status),
            }
        }
        Err(Status::modified(call.group(), call.plural(), name))
    }

    async fn change_absent(
        &self,
        call: &Call,
        name: &str,
        rules: &UpdateRules<'_>,
        change: &dyn Change,
    ) -> Result<(Outcome, bool), CommitError> {
        // A dry run looks for the object before it looks at what is expected of it.
        if let Some(uid) = change.uid().filter(|_| !call.ctx.dry_run) {
            return Err(wrong_uid(call, name, uid, "").into());
        }
        if !rules.create_if_absent {
            return Err(call.not_found(name).into());
        }
        let mut object = change.apply(call, None).await?;
        let options = rules.options.admission_object("CreateOptions");
        self.admit(call, Operation::Create, &options, name, Some(&mut object), None).await?;
        metadata::dedup_owner_references(&mut object, &call.ctx.warnings, true);
        self.authorize_create(call).await?;
        metadata::wipe_system_fields(&mut object);
        metadata::remove(&mut object, "resourceVersion");
        match self.create_object(call, object, rules.options, &options).await {
            Ok(outcome) => Ok((outcome, true)),
            // Somebody else created it meanwhile: then this is an update.
            Err(status) if status.is_already_exists() => {
                Err(CommitError::Conflict(call.store().get(call.namespace(), name).await?))
            }
            Err(status) => Err(status.into()),
        }
    }

    async fn change_once(
        &self,
        call: &Call,
        name: &str,
        rules: &UpdateRules<'_>,
        change: &dyn Change,
        current: &Arc<Object>,
    ) -> Result<(Outcome, bool), CommitError> {
        let old = current.tree();
        let strategy = call.strategy();
        let uid = metadata::text(&old, "uid");
        if let Some(wanted) = change.uid().filter(|u| *u != uid) {
            return Err(wrong_uid(call, name, wanted, uid).into());
        }
        let mut object = change.apply(call, Some(&old)).await?;
        let options = rules.options.admission_object("UpdateOptions");
        if change.admits_object() {
            self.admit(call, Operation::Update, &options, name, Some(&mut object), Some(&old)).await?;
        }
        metadata::dedup_owner_references(&mut object, &call.ctx.warnings, true);

        let version = metadata::text(&object, "resourceVersion");
        if matches!(version, "" | "0") {
            if !strategy.allow_unconditional_update() {
                let path = Path::new("metadata").child("resourceVersion");
                let error = Error::invalid(&path, 0i64, "must be specified for an update");
                // Upstream names the resource here where it names the kind everywhere else.
                return Err(Status::invalid(call.group(), call.plural(), name, &[error]).into());
            }
            metadata::set(&mut object, "resourceVersion", current.revision.to_string());
        } else if version != metadata::text(&old, "resourceVersion") {
            if version.parse::<u64>().is_err() {
                let why =
                    format!("strconv.ParseUint: parsing {}: invalid syntax", coxswain_api::field::go_quote(version));
                return Err(Status { details: None, ..Status::new(500, "", why) }.into());
            }
            return Err(Status::modified(call.group(), call.plural(), name).into());
        }

        let taken = match strategy.hooks().filter(|_| rules.subresource.is_empty()) {
            Some(hooks) => Some(hooks.begin(self, call, &mut object, Some(&old)).await?),
            None => None,
        };
        if let Some(hooks) = strategy.hooks().filter(|_| rules.subresource == "status") {
            hooks.authorize_status(self, call, &object, &old).await?;
        }
        self.prepare_update(call, rules.subresource, &mut object, &old)?;
        coxswain_api::codec::canonicalize(&mut object, &call.hub().schema);
        ignore_timestamps(&mut object, &old);
        if change.admits_object() {
            self.validate_admission(call, Operation::Update, &options, name, Some(&mut object), Some(&old)).await?;
        } else {
            change.validate(self, call, &object, &old).await?;
        }

        if metadata::is_deleting(&old)
            && metadata::finalizers(&object).is_empty()
            && metadata::number(&old, "deletionGracePeriodSeconds").unwrap_or(0) == 0
            && strategy.delete_during_update(&object)
        {
            if !rules.options.dry_run {
                match self.commit_delete(call, current).await {
                    // Somebody else took the last finalizer off at the same time: both got what they asked for.
                    Ok(_) | Err(CommitError::Conflict(None)) => {}
                    Err(e) => return Err(e),
                }
            }
            return Ok((Outcome::DryRun(object), false));
        }
        if object == *old && !call.store().is_stale(current).await {
            if let Some(taken) = taken {
                taken.keep();
            }
            return Ok((Outcome::Stored(current.clone()), false));
        }
        if rules.options.dry_run {
            return Ok((Outcome::DryRun(object), false));
        }
        let stored = call.store().update(current, &object, strategy.ttl(&object)).await?;
        if let Some(taken) = taken {
            taken.keep();
        }
        call.store().remember(&stored, object);
        Ok((Outcome::Stored(stored), false))
    }

    /// Restores what this writer may not change, and validates (upstream: `BeforeUpdate`).
    fn prepare_update(&self, call: &Call, subresource: &str, object: &mut Value, old: &Value) -> Result<(), Status> {
        let strategy = call.strategy();
        let ty = call.ty();
        metadata::ensure_namespace(object, call.namespace())?;
        match metadata::number(old, "generation") {
            Some(generation) => metadata::set(object, "generation", generation),
            None => metadata::remove(object, "generation"),
        }
        match subresource {
            "" if ty.subresource("status").is_some() => restore(object, old, "status"),
            "status" => {
                restore_all_but(object, old, "status");
                strategy.reset_for_status(object, old);
            }
            _ => {}
        }
        for (pointer, fields) in strategy.gated_fields() {
            gated::drop_disabled(object, Some(old), pointer, fields);
        }
        strategy.prepare_for_update(&call.ctx, object, old, subresource);
        if strategy.has_generation() && subresource != "status" && strategy.spec_changed(object, old) {
            let generation = metadata::number(old, "generation").unwrap_or(0) + 1;
            metadata::set(object, "generation", generation);
        }
        // What a writer left out of the server's own fields is filled in; what it changed is an error below.
        if metadata::text(object, "uid").is_empty() {
            metadata::set(object, "uid", metadata::text(old, "uid"));
        }
        for field in ["creationTimestamp", "deletionTimestamp"] {
            if !metadata::text(old, field).is_empty() {
                metadata::set(object, field, metadata::text(old, field));
            }
        }
        if let (Some(seconds), None) = (
            metadata::number(old, "deletionGracePeriodSeconds"),
            metadata::number(object, "deletionGracePeriodSeconds"),
        ) {
            metadata::set(object, "deletionGracePeriodSeconds", seconds);
        }
        let mut errors: ErrorList = metadata::validate(object, ty.namespaced, &coxswain_api::names::path_segment);
        errors.extend(metadata::validate_update(object, old));
        // Most kinds check the metadata of a change a second time, and some all of it: the causes are in the answer.
        let repeats = strategy.repeats_metadata_checks(subresource);
        if repeats.whole && repeats.whole_first {
            errors.extend(metadata::validate_for(strategy, object, ty.namespaced));
        }
        if repeats.update {
            errors.extend(metadata::validate_update(object, old));
            if strategy.restricts_finalizers() {
                metadata::finalizer_names(object, &mut errors);
            }
        }
        if repeats.whole && !repeats.whole_first {
            errors.extend(metadata::validate_for(strategy, object, ty.namespaced));
        }
        errors.extend(strategy.validate_update(&call.ctx, object, old, subresource));
        if !errors.is_empty() {
            return Err(call.invalid(object, &errors));
        }
        let warnings = match subresource {
            "" => strategy.warnings(&call.ctx, object, Some(old)),
            "status" => strategy.status_warnings(object),
            _ => Vec::new(),
        };
        warnings.into_iter().for_each(|warning| call.ctx.warnings.add(warning));
        strategy.canonicalize(object);
        Ok(())
    }

    /// A PUT or apply that creates needs the right to create.
    async fn authorize_create(&self, call: &Call) -> Result<(), Status> {
        let mut info = (*call.ctx.info).clone();
        info.verb = "create".into();
        self.authorization.check(&call.ctx.user, &info).await
    }
}

impl From<Status> for CommitError {
    fn from(status: Status) -> Self {
        CommitError::Refused(status)
    }
}

/// A whole new object.
struct Replace {
    object: Value,
}

#[async_trait]
impl Change for Replace {
    fn uid(&self) -> Option<&str> {
        Some(metadata::text(&self.object, "uid")).filter(|u| !u.is_empty())
    }

    async fn apply(&self, call: &Call, current: Option<&Value>) -> Result<Value, Status> {
        let mut object = convert::settle(call, self.object.clone())?;
        let live = current.map(|c| convert::from_hub(call, c)).transpose()?;
        managed_fields::update(live.as_deref(), &mut object, &writer(call));
        convert::to_hub(call, object)
    }
}

/// Who writes, for managed fields.
pub(super) fn writer(call: &Call) -> managed_fields::Writer<'_> {
    managed_fields::Writer {
        manager: &call.ctx.field_manager,
        api_version: call.shape().version.api_version(),
        kind: call.shape().kind,
        subresource: call.subresource(),
        now: call.ctx.now,
        schema: call.shape().schema,
        reset: reset_fields(call),
    }
}

/// What this writer does not come to own although it may be in its object.
pub(super) fn reset_fields(call: &Call) -> &'static [&'static str] {
    let has_status = call.ty().subresource("status").is_some();
    match (call.strategy().reset_fields(call.subresource()), call.subresource()) {
        (Some(fields), _) => fields,
        (None, "") if has_status => &["status"],
        (None, "status") => &["spec"],
        _ => &[],
    }
}

/// The name in the body is the name in the path.
pub(super) fn check_name(object: &Value, call: &Call) -> Result<(), Status> {
    let name = metadata::text(object, "name");
    if name.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            call.name()
        )));
    }
    if name != call.name() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.name()
        )));
    }
    let namespace = metadata::text(object, "namespace");
    if !call.namespace().is_empty() && !namespace.is_empty() && namespace != call.namespace() {
        return Err(Status::bad_request(format!(
            "the namespace of the object ({namespace}) does not match the namespace on the request ({})",
            call.namespace()
        )));
    }
    Ok(())
}

fn wrong_uid(call: &Call, name: &str, wanted: &str, present: &str) -> Status {
    let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {present}");
    precondition_failed(call, name, &why)
}

/// The conflict of a precondition, in the words of upstream's storage layer.
pub(super) fn precondition_failed(call: &Call, name: &str, why: &str) -> Status {
    let key = shown_key(call.store(), call, name);
    let error =
        format!("StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: {why}");
    Status::conflict(call.group(), call.plural(), name, &error)
}

/// The key of an object as a refusal shows it. A dry run is judged in front of upstream's storage, which knows no prefix.
pub(super) fn shown_key(store: &crate::store::Store, call: &Call, name: &str) -> String {
    let key = store.key(call.namespace(), name);
    match key.strip_prefix("/registry").filter(|_| call.ctx.dry_run) {
        Some(bare) => bare.to_owned(),
        None => key.to_string(),
    }
}

fn restore(object: &mut Value, old: &Value, field: &str) {
    let Some(map) = object.as_object_mut() else { return };
    match old.get(field) {
        Some(value) if map.get(field) == Some(value) => {}
        Some(value) => {
            map.insert(field.into(), value.clone());
        }
        None => {
            map.remove(field);
        }
    }
}

/// Everything but one field and the metadata is as it was.
fn restore_all_but(object: &mut Value, old: &Value, kept: &str) {
    let (Some(map), Some(before)) = (object.as_object_mut(), old.as_object()) else { return };
    map.retain(|k, _| k == kept || k == "metadata" || before.contains_key(k));
    for (field, value) in before {
        // To compare costs less than to copy and to drop what was there.
        if field != kept && field != "metadata" && map.get(field) != Some(value) {
            map.insert(field.clone(), value.clone());
        }
    }
}
