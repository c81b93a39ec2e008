//! PodCertificateRequest: a node asks for a certificate for a pod (upstream: `pkg/registry/certificates/podcertificaterequest`,
//! `ValidatePodCertificateRequest…`).

mod spec;

use super::issued;
use crate::admission::certificates::may;
use crate::registry::internal::{POD_CERTIFICATE_SPEC, dump};
use crate::registry::pipeline::{Call, Pipeline};
use crate::registry::resource::{Hooks, MetadataChecks, Resource, Taken};
use crate::registry::{checks, metadata};
use crate::request::Context;
use async_trait::async_trait;
use base64::Engine;
use coxswain_api::field::{Error, ErrorList, Path, View, go_quote};
use coxswain_api::{Status, Value};

/// Of these conditions a request has at most one, and then it is over.
const FINAL: [&str; 3] = ["Issued", "Denied", "Failed"];

pub struct PodCertificateRequests;

impl Resource for PodCertificateRequests {
    fn reset_for_status(&self, object: &mut Value, old: &Value) {
        metadata::reset_for_status(object, old);
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        spec::check(&View::root(object).child("spec"))
    }

    fn validate_update(&self, ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        if subresource == "status" {
            return check_status(ctx.now, object, old);
        }
        let mut errors = ErrorList::new();
        let [new, old] = [object, old].map(|o| View::root(o).child("spec"));
        if !same_fields(&new, &old) {
            errors.push(Error::invalid(new.path(), dump(&new, &POD_CERTIFICATE_SPEC), checks::IMMUTABLE));
        }
        errors
    }

    fn hooks(&self) -> Option<&dyn Hooks> {
        Some(&SignerOnly)
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: false, whole_first: false }
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let spec = View::root(object).child("spec");
        [("spec.signerName", "signerName"), ("spec.podName", "podName"), ("spec.nodeName", "nodeName")]
            .map(|(label, field)| (label, spec.child(field).str().to_owned()))
            .into()
    }

    fn selectable_labels(&self) -> &'static [&'static str] {
        &["spec.signerName", "spec.podName", "spec.nodeName"]
    }

    /// Upstream lets writers of the object own its status.
    fn reset_fields(&self, subresource: &str) -> Option<&'static [&'static str]> {
        Some(if subresource.is_empty() { &[] } else { &["spec"] })
    }
}

/// What is empty equals what is absent.
fn same_fields(new: &View<'_>, old: &View<'_>) -> bool {
    let given = |spec: &View<'_>| -> Vec<(String, Value)> {
        let is_empty = |v: &Value| v.is_null() || v == "" || v.as_object().is_some_and(serde_json::Map::is_empty);
        let fields = spec.value().and_then(Value::as_object).into_iter().flatten();
        fields.filter(|(_, v)| !is_empty(v)).map(|(name, v)| (name.clone(), v.clone())).collect()
    };
    given(new) == given(old)
}

/// An error that does not show the value.
pub(super) fn without_value(path: &Path, why: impl Into<String>) -> Error {
    Error { bad_value: None, ..Error::invalid(path, "", why) }
}

pub(super) fn decoded(bytes: &View<'_>) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(bytes.str()).unwrap_or_default()
}

fn is_final(status: &View<'_>, kind: &str) -> bool {
    let is = |c: &View<'_>| c.child("type").str() == kind && c.child("status").str() == "True";
    status.child("conditions").items().any(|c| is(&c))
}

fn check_status(now: jiff::Timestamp, object: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let [status, before] = [object, old].map(|o| View::root(o).child("status"));
    let conditions = status.child("conditions");
    let mut known = 0;
    for (i, condition) in conditions.items().enumerate() {
        let (kind, value) = (condition.child("type"), condition.child("status"));
        // Upstream takes the index for a name.
        let path = |field| conditions.path().child_named(&format!("[{i}]")).child(field);
        if !FINAL.contains(&kind.str()) {
            errors.push(Error::not_supported(&path("type"), kind.str(), &FINAL));
            continue;
        }
        known += 1;
        if known > 1 {
            let why = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
            errors.push(Error::invalid(&path("type"), kind.str(), why));
        }
        if value.str() != "True" {
            errors.push(Error::not_supported(&path("status"), value.str(), &["True"]));
        }
    }
    checks::conditions(&conditions, &mut errors);
    if !errors.is_empty() {
        return errors;
    }
    let is_same = same_fields(&status, &before);
    let refuse = |why: &str| vec![without_value(status.path(), why)];
    if FINAL.iter().any(|kind| is_final(&before, kind)) {
        return if is_same {
            errors
        } else {
            refuse("immutable after PodCertificateRequest is issued, denied, or failed")
        };
    }
    if is_final(&status, "Denied") || is_final(&status, "Failed") {
        let others = ["certificateChain", "notBefore", "beginRefreshAt", "notAfter"];
        let is_bare = others.iter().all(|field| status.child(field).is_empty());
        let why = "non-condition status fields must be empty when denying or failing the PodCertificateRequest";
        return if is_bare { errors } else { refuse(why) };
    }
    if is_final(&status, "Issued") {
        issued::check(now, &status, &View::root(old).child("spec"), &mut errors);
        return errors;
    }
    if is_same {
        errors
    } else {
        refuse("status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"")
    }
}

/// Only who may sign for the signer changes the status.
struct SignerOnly;

#[async_trait]
impl Hooks for SignerOnly {
    async fn begin(
        &self,
        _pipeline: &Pipeline,
        _call: &Call,
        _object: &mut Value,
        _old: Option<&Value>,
    ) -> Result<Box<dyn Taken>, Status> {
        Ok(Box::new(Nothing))
    }

    async fn authorize_status(
        &self,
        pipeline: &Pipeline,
        call: &Call,
        object: &Value,
        old: &Value,
    ) -> Result<(), Status> {
        let Some(signer) = signer_to_ask(call.ctx.now, object, old) else { return Ok(()) };
        if may(&pipeline.authorization, &call.ctx.user, "sign", &signer).await {
            return Ok(());
        }
        let (user, name) = (go_quote(&call.ctx.user.name), go_quote(&signer));
        let why = format!("User {user} is not permitted to \"sign\" for signer {name}");
        Err(call.invalid(object, &[Error::forbidden(&Path::new("spec").child("signerName"), why)]))
    }
}

/// The signer whose right a change of the status needs; none if it changes nothing, or is wrong by itself, which is said first.
fn signer_to_ask(now: jiff::Timestamp, object: &Value, old: &Value) -> Option<String> {
    let [status, before] = [object, old].map(|o| View::root(o).child("status"));
    let is_asked = !same_fields(&status, &before) && check_status(now, object, old).is_empty();
    is_asked.then(|| View::root(old).child("spec").child("signerName").str().to_owned())
}

/// The check takes nothing.
struct Nothing;

impl Taken for Nothing {
    fn keep(self: Box<Self>) {}
}
