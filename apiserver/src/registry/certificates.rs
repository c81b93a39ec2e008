//! Requests for certificates (upstream: `pkg/registry/certificates` and `pkg/apis/certificates`).
//!
//! Signing is a controller's; here is who asked, what may be asked for, and that a decision is final.

mod issued;
mod keys;
mod pem;
pub mod pod_request;
pub mod trust_bundle;

use super::resource::{MetadataChecks, Resource};
use crate::registry::internal::{CERTIFICATE_CONDITIONS, unified};
use crate::request::Context;
use base64::Engine;
use coxswain_api::field::{Error, ErrorKind, ErrorList, Path, View};
use coxswain_api::{Value, names};
use serde_json::json;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

/// `certificatesigningrequests`
pub struct CertificateSigningRequests;

const FINAL: [&str; 3] = ["Approved", "Denied", "Failed"];

#[rustfmt::skip]
const USAGES: [&str; 23] = [
    "any", "cert sign", "client auth", "code signing", "content commitment", "crl sign", "data encipherment",
    "decipher only", "digital signature", "email protection", "encipher only", "ipsec end system", "ipsec tunnel",
    "ipsec user", "key agreement", "key encipherment", "microsoft sgc", "netscape sgc", "ocsp signing", "s/mime",
    "server auth", "signing", "timestamping",
];

impl Resource for CertificateSigningRequests {
    fn repeats_metadata_checks(&self, subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: subresource.is_empty(), whole_first: true }
    }

    fn prepare_for_create(&self, ctx: &Context, object: &mut Value) {
        // Who asks is not for the asker to say.
        let user = &ctx.user;
        let spec = &mut object["spec"];
        spec["username"] = json!(user.name);
        spec["uid"] = json!(user.uid);
        spec["groups"] = json!(user.groups);
        spec["extra"] = json!(user.extra);
        if let Some(object) = object.as_object_mut() {
            object.insert("status".into(), json!({}));
        }
    }

    fn prepare_for_update(&self, ctx: &Context, object: &mut Value, old: &Value, subresource: &str) {
        object["spec"] = old["spec"].clone();
        match subresource {
            "" => object["status"] = old["status"].clone(),
            "approval" => {
                // The certificate is the signer's, conditions that the approver did not make stay.
                let conditions = object["status"]["conditions"].take();
                object["status"] = old["status"].clone();
                object["status"]["conditions"] = conditions;
                fill_conditions(ctx, object, old);
            }
            _ => fill_conditions(ctx, object, old),
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let spec = View::new(object.get("spec"), Path::new("spec"));
        let mut errors = ErrorList::new();
        let request = spec.child("request");
        if let Err(why) = parse_request(request.str()) {
            errors.push(Error::invalid(request.path(), &request, why));
        }
        let usages = spec.child("usages");
        if usages.is_empty() {
            errors.push(Error::required(usages.path(), ""));
        }
        let mut seen = Vec::new();
        for usage in usages.items() {
            if !USAGES.contains(&usage.str()) {
                errors.push(Error::not_supported(usage.path(), usage.str(), &USAGES));
            }
            if seen.contains(&usage.str()) {
                errors.push(Error::duplicate(usage.path(), usage.str()));
            }
            seen.push(usage.str());
        }
        let signer = spec.child("signerName");
        check_signer_name(&signer, &mut errors);
        if signer.str() == "kubernetes.io/legacy-unknown" {
            let why = "the legacy signerName is not allowed via this API version";
            errors.push(Error::invalid(signer.path(), signer.str(), why));
        }
        let expiration = spec.child("expirationSeconds");
        if expiration.opt_i64().is_some_and(|seconds| seconds < 600) {
            let why = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.push(Error::invalid(expiration.path(), expiration.i64(), why));
        }
        errors.extend(check_conditions(object));
        errors
    }

    fn validate_update(&self, ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        let mut errors = self.validate(ctx, object);
        // What was accepted once stays acceptable: only the status can have changed.
        errors.retain(|e| !e.field.starts_with("spec"));
        let conditions = Path::new("status").child("conditions");
        let of = |o: &Value, kind: &str| -> Value {
            let all = o["status"]["conditions"].as_array().cloned().unwrap_or_default();
            all.into_iter().filter(|c| c["type"] == kind).collect()
        };
        let count = |list: &Value| list.as_array().map_or(0, Vec::len);
        let mut refuse = |what: String| errors.push(Error::forbidden(&conditions, format!("updates may not {what}")));
        for kind in FINAL.into_iter().filter(|kind| count(&of(object, kind)) < count(&of(old, kind))) {
            refuse(format!("remove a condition of type {}", coxswain_api::field::go_quote(kind)));
        }
        // The verdict is the approver's alone.
        for kind in ["Approved", "Denied"].into_iter().filter(|_| subresource != "approval") {
            let (new, before, quoted) = (of(object, kind), of(old, kind), coxswain_api::field::go_quote(kind));
            if count(&new) > count(&before) {
                refuse(format!("add a condition of type {quoted}"));
            } else if count(&new) == count(&before) && new != before {
                let difference = unified::internal(&View::root(&before), &View::root(&new), &CERTIFICATE_CONDITIONS);
                refuse(format!("modify a condition of type {quoted}\n{difference}"));
            }
        }
        let [certificate, before] = [object, old].map(|o| o["status"]["certificate"].as_str().unwrap_or_default());
        if certificate != before {
            let path = Path::new("status").child("certificate");
            if let Err(why) = check_certificate(certificate)
                && !certificate.is_empty()
            {
                // What every request must satisfy is said before what may not change.
                let at = errors.iter().position(|e| e.kind == ErrorKind::Forbidden).unwrap_or(errors.len());
                errors.insert(at, Error::invalid(&path, "<certificate data>", why));
            }
            if subresource != "status" {
                errors.push(Error::forbidden(&path, "updates may not set certificate content"));
            } else if !before.is_empty() {
                errors.push(Error::forbidden(&path, "updates may not modify existing certificate content"));
            }
        }
        errors
    }

    /// Any name that a path can hold: controllers name requests after what they are for.
    fn validate_name(&self, _name: &str, _prefix: bool) -> Vec<String> {
        Vec::new()
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("spec.signerName", object["spec"]["signerName"].as_str().unwrap_or_default().to_owned())]
    }

    fn selectable_labels(&self) -> &'static [&'static str] {
        &["spec.signerName"]
    }

    fn reset_fields(&self, subresource: &str) -> Option<&'static [&'static str]> {
        Some(match subresource {
            "" => &["spec", "status"],
            "approval" => &["spec", "status.certificate"],
            _ => &["spec"],
        })
    }
}

/// Times that were not given: a new condition was updated now, and moved now if its status did.
fn fill_conditions(ctx: &Context, object: &mut Value, old: &Value) {
    let now = ctx.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let before = old["status"]["conditions"].as_array().cloned().unwrap_or_default();
    for condition in object["status"]["conditions"].as_array_mut().into_iter().flatten() {
        if condition["lastUpdateTime"].is_null() {
            condition["lastUpdateTime"] = json!(now);
        }
        if condition["lastTransitionTime"].is_null() {
            let same = before.iter().find(|c| c["type"] == condition["type"] && c["status"] == condition["status"]);
            let kept = same.map(|c| c["lastTransitionTime"].clone()).filter(|t| !t.is_null());
            condition["lastTransitionTime"] = kept.unwrap_or_else(|| json!(now));
        }
    }
}

fn check_conditions(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let list = View::new(object.get("status"), Path::new("status")).child("conditions");
    let (mut approved, mut denied) = (false, false);
    let mut seen: Vec<&str> = Vec::new();
    for condition in list.items() {
        let (kind, status) = (condition.child("type"), condition.child("status"));
        if kind.is_empty() {
            errors.push(Error::required(kind.path(), ""));
        }
        let verdict = FINAL.contains(&kind.str());
        let allowed: &[&str] = if verdict { &["True"] } else { &["False", "True", "Unknown"] };
        if status.is_empty() {
            errors.push(Error::required(status.path(), ""));
        } else if !allowed.contains(&status.str()) {
            errors.push(Error::not_supported(status.path(), status.str(), allowed));
        }
        approved |= kind.str() == "Approved";
        denied |= kind.str() == "Denied";
        let other = match kind.str() {
            "Approved" if denied => Some("Denied"),
            "Denied" if approved => Some("Approved"),
            _ => None,
        };
        if other.is_some() {
            let why = "Approved and Denied conditions are mutually exclusive";
            errors.push(Error::invalid(list.path(), kind.str(), why));
        }
        if seen.contains(&kind.str()) {
            errors.push(Error::duplicate(kind.path(), kind.str()));
        }
        seen.push(kind.str());
    }
    errors
}

/// Base64 of the PEM of a PKCS#10 request whose signature is good.
fn parse_request(text: &str) -> Result<(), String> {
    const WRONG_TYPE: &str = "PEM block type must be CERTIFICATE REQUEST";
    let pem = base64::engine::general_purpose::STANDARD.decode(text).map_err(|_| WRONG_TYPE.to_owned())?;
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem).map_err(|_| WRONG_TYPE.to_owned())?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err(WRONG_TYPE.into());
    }
    let (_, request) = X509CertificationRequest::from_der(&block.contents)
        .map_err(|_| "asn1: structure error: malformed certificate request".to_owned())?;
    request.verify_signature().map_err(|_| "x509: the signature of the request is not valid".to_owned())
}

fn check_certificate(text: &str) -> Result<(), String> {
    let pem = base64::engine::general_purpose::STANDARD.decode(text).map_err(|e| e.to_string())?;
    let mut rest: &[u8] = &pem;
    let mut any = false;
    while let Ok((next, block)) = x509_parser::pem::parse_x509_pem(rest) {
        if block.label != "CERTIFICATE" {
            return Err(format!(
                "only CERTIFICATE PEM blocks are allowed, found {}",
                coxswain_api::field::go_quote(&block.label)
            ));
        }
        block.parse_x509().map_err(|e| e.to_string())?;
        any = true;
        rest = next;
    }
    if any { Ok(()) } else { Err("must contain at least one CERTIFICATE PEM block".into()) }
}

/// `domain/path` with a domain of at least two segments (upstream: `ValidateSignerName`).
pub(super) fn check_signer_name(signer: &View<'_>, errors: &mut ErrorList) {
    let (path, name) = (signer.path(), signer.str());
    if name.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    let Some((domain, rest)) = name.split_once('/').filter(|(_, rest)| !rest.contains('/')) else {
        errors.push(Error::invalid(
            path,
            name,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        ));
        return;
    };
    const DOMAIN_BYTES_MAX: i64 = 253;
    const NAME_BYTES_MAX: i64 = 571;
    if domain.len() as i64 > DOMAIN_BYTES_MAX {
        errors.push(Error::too_long(path, DOMAIN_BYTES_MAX));
    }
    // Of each half only the first label that is wrong is reported.
    type Check = fn(&str, bool) -> Vec<String>;
    let labels = |text: &str, check: Check, errors: &mut ErrorList| {
        let wrong = text.split('.').map(|label| (label, check(label, false))).find(|(_, wrong)| !wrong.is_empty());
        let (label, wrong) = wrong.unwrap_or_default();
        let label = coxswain_api::field::go_quote(label);
        errors.extend(
            wrong.into_iter().map(|why| Error::invalid(path, text, format!("validating label {label}: {why}"))),
        );
    };
    labels(domain, names::dns1123_label, errors);
    if !domain.contains('.') {
        errors.push(Error::invalid(path, domain, "should be a domain with at least two segments separated by dots"));
    }
    labels(rest, names::dns1123_subdomain, errors);
    if name.len() as i64 > NAME_BYTES_MAX {
        errors.push(Error::too_long(path, NAME_BYTES_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signers_have_a_domain_and_a_path() {
        for (name, wrong) in [
            ("example.com/a-b.c", &[][..]),
            ("example.com", &["must be a fully qualified domain and path of the form 'example.com/signer-name'"]),
            ("a/b", &["should be a domain with at least two segments separated by dots"]),
            ("/b", &["validating label \"\"", "should be a domain with at least two segments separated by dots"]),
            ("a.B.C/D.E", &["validating label \"B\"", "validating label \"D\""]),
        ] {
            let (value, mut errors) = (json!(name), ErrorList::new());
            check_signer_name(&View::root(&value), &mut errors);
            assert_eq!(errors.len(), wrong.len(), "{name}: {errors:?}");
            assert!(errors.iter().zip(wrong).all(|(e, w)| e.detail.starts_with(w)), "{name}: {errors:?}");
        }
    }
}
