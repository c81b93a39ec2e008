//! PodCertificateRequest: a node asks for a certificate for a pod (upstream: `pkg/registry/certificates/podcertificaterequest`,
//! `ValidatePodCertificateRequest…`).

use super::keys::{self, Key};
use super::{check_signer_name, issued};
use crate::admission::certificates::may;
use crate::registry::internal::{POD_CERTIFICATE_SPEC, dump};
use crate::registry::pipeline::{Call, Pipeline};
use crate::registry::resource::{Hooks, MetadataChecks, Resource, Taken};
use crate::registry::{checks, metadata};
use crate::request::Context;
use async_trait::async_trait;
use base64::Engine;
use coxswain_api::field::{Error, ErrorList, Path, View, go_quote};
use coxswain_api::{Status, Value, names};

pub(super) const KEY_BYTES_MAX: i64 = 10 * 1024;
const UID_BYTES_MAX: i64 = 128;
const EXPIRATION_SECONDS_MIN: i64 = 60 * 60;
const EXPIRATION_SECONDS_MAX: i64 = 91 * 24 * 60 * 60;
/// For signers of Kubernetes' own.
const EXPIRATION_SECONDS_MAX_OWN: i64 = 24 * 60 * 60;
const ANNOTATION_BYTES_MAX: usize = 256 * 1024;
/// Of these conditions a request has at most one, and then it is over.
const FINAL: [&str; 3] = ["Issued", "Denied", "Failed"];

pub struct PodCertificateRequests;

impl Resource for PodCertificateRequests {
    fn reset_for_status(&self, object: &mut Value, old: &Value) {
        metadata::reset_for_status(object, old);
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        check_spec(&View::root(object).child("spec"))
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

fn check_spec(spec: &View<'_>) -> ErrorList {
    let mut errors = ErrorList::new();
    let signer = spec.child("signerName");
    check_signer_name(&signer, &mut errors);
    check_user_annotations(&spec.child("unverifiedUserAnnotations"), &mut errors);
    for (name, uid) in [("podName", "podUID"), ("serviceAccountName", "serviceAccountUID"), ("nodeName", "nodeUID")] {
        checks::dns_subdomain(&spec.child(name), &mut errors);
        let uid = spec.child(uid);
        if uid.is_empty() {
            errors.push(Error::invalid(uid.path(), "", "must not be empty"));
        }
        if uid.len() as i64 > UID_BYTES_MAX {
            errors.push(Error::too_long(uid.path(), UID_BYTES_MAX));
        }
    }
    let expiration = spec.child("maxExpirationSeconds");
    let Some(seconds) = expiration.opt_i64() else {
        errors.push(Error::required(expiration.path(), "must be set"));
        return errors;
    };
    let host = signer.str().split('/').next().unwrap_or_default();
    let is_own = host == "kubernetes.io" || host.ends_with(".kubernetes.io");
    let max = if is_own { EXPIRATION_SECONDS_MAX_OWN } else { EXPIRATION_SECONDS_MAX };
    if !(EXPIRATION_SECONDS_MIN..=max).contains(&seconds) {
        let why = format!("must be in the range [{EXPIRATION_SECONDS_MIN}, {max}]");
        errors.push(Error::invalid(expiration.path(), seconds, why));
    }
    let [request, key, proof] =
        ["stubPKCS10Request", "pkixPublicKey", "proofOfPossession"].map(|field| spec.child(field));
    match [&request, &key, &proof].map(View::is_empty) {
        [false, true, true] => check_request(&request, &mut errors),
        [true, false, false] => check_key(&key, &proof, spec.child("podUID").str(), &mut errors),
        _ => {
            let why = "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set";
            errors.push(without_value(spec.path(), why));
        }
    }
    errors
}

fn check_user_annotations(annotations: &View<'_>, errors: &mut ErrorList) {
    let mut bytes = 0;
    for (key, value) in annotations.entries() {
        domain_prefixed_key(annotations.path(), &key.to_lowercase(), errors);
        bytes += key.len() + value.str().len();
    }
    if bytes > ANNOTATION_BYTES_MAX {
        errors.push(Error::too_long(annotations.path(), ANNOTATION_BYTES_MAX as i64));
    }
}

/// A qualified name that has a domain (upstream: `IsDomainPrefixedKey`).
fn domain_prefixed_key(path: &Path, key: &str, errors: &mut ErrorList) {
    if key.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    let wrong = names::qualified_name(key);
    if wrong.is_empty() && !key.contains('/') {
        let why = "must be a domain-prefixed key (such as \"acme.io/foo\")";
        errors.push(Error::invalid(path, key, why));
    }
    errors.extend(wrong.into_iter().map(|why| Error::invalid(path, key, why)));
}

fn check_request(request: &View<'_>, errors: &mut ErrorList) {
    let bytes = decoded(request);
    if bytes.len() as i64 > KEY_BYTES_MAX {
        errors.push(Error::too_long(request.path(), KEY_BYTES_MAX));
        return;
    }
    let Some(key) = keys::of_request(&bytes) else {
        errors.push(without_value(request.path(), "must be a valid PKCS#10 CSR"));
        return;
    };
    let wrong = match &key {
        Key::Ec { curve, .. } if !key.is_supported() => Error::invalid(
            request.path(),
            format!("curve {curve}"),
            "elliptic public keys must use curve P256, P384, or P521",
        ),
        Key::Rsa { bits, .. } if !key.is_supported() => Error::invalid(
            request.path(),
            format!("{bits}-bit modulus"),
            "RSA keys must have modulus size 3072 or 4096",
        ),
        Key::Other => {
            without_value(request.path(), "unknown public key type; supported types are Ed25519, ECDSA, and RSA")
        }
        _ if !keys::is_signed(&bytes) => without_value(request.path(), "invalid signature"),
        _ => return,
    };
    errors.push(wrong);
}

/// The older form: a key, and a signature of the pod's identity made with it.
fn check_key(key_view: &View<'_>, proof: &View<'_>, pod_uid: &str, errors: &mut ErrorList) {
    let (key_bytes, signature) = (decoded(key_view), decoded(proof));
    for (view, bytes) in [(key_view, &key_bytes), (proof, &signature)] {
        if bytes.len() as i64 > KEY_BYTES_MAX {
            errors.push(Error::too_long(view.path(), KEY_BYTES_MAX));
            return;
        }
    }
    let path = key_view.path();
    let Some(key) = keys::of_public_key(&key_bytes) else {
        errors.push(Error::invalid(path, key_view.str(), "must be a valid PKIX-serialized public key"));
        return;
    };
    let wrong = match &key {
        Key::Ec { curve, .. } if !key.is_supported() => {
            Error::invalid(path, format!("curve {curve}"), "elliptic public keys must use curve P256 or P384")
        }
        Key::Rsa { bits, .. } if !key.is_supported() => {
            Error::invalid(path, format!("{bits}-bit modulus"), "RSA keys must have modulus size 3072 or 4096")
        }
        Key::Other => {
            Error::invalid(path, key_view.str(), "unknown public key type; supported types are Ed25519, ECDSA, and RSA")
        }
        _ if !key.proves(pod_uid.as_bytes(), &signature) => {
            without_value(proof.path(), "could not verify proof-of-possession signature")
        }
        _ => return,
    };
    errors.push(wrong);
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
