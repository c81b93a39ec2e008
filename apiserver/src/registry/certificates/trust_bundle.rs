//! ClusterTrustBundle: certificates that workloads trust (upstream: `pkg/registry/certificates/clustertrustbundle`,
//! `ValidateClusterTrustBundle`).

use super::{check_signer_name, pem};
use crate::registry::resource::{MetadataChecks, Resource};
use crate::registry::{checks, metadata};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, names};
use x509_parser::prelude::{FromDer, X509Certificate};

const BUNDLE_BYTES_MAX: i64 = 1024 * 1024;

pub struct ClusterTrustBundles;

impl Resource for ClusterTrustBundles {
    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        check(object, true)
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let [new, before] = [object, old].map(|bundle| View::root(bundle).child("spec"));
        let is_new = new.child("trustBundle").str() != before.child("trustBundle").str();
        let mut errors = check(object, is_new);
        errors.extend(metadata::validate_update(object, old));
        metadata::finalizer_names(object, &mut errors);
        checks::immutable_text(&new.child("signerName"), &before.child("signerName"), &mut errors);
        errors
    }

    /// What a name must be depends on the signer.
    fn validates_metadata(&self) -> bool {
        true
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: false, whole: false, whole_first: false }
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("spec.signerName", View::root(object).child("spec").child("signerName").str().to_owned())]
    }

    fn selectable_labels(&self) -> &'static [&'static str] {
        &["spec.signerName"]
    }
}

fn check(object: &Value, parses_bundle: bool) -> ErrorList {
    let spec = View::root(object).child("spec");
    let signer = spec.child("signerName");
    let mut errors =
        metadata::validate_rules(object, false, &|name, prefix| check_name(signer.str(), name, prefix), true);
    if !signer.is_empty() {
        check_signer_name(&signer, &mut errors);
    }
    if parses_bundle {
        check_bundle(&spec.child("trustBundle"), &mut errors);
    }
    errors
}

/// A bundle of a signer is named after it.
fn check_name(signer: &str, name: &str, prefix: bool) -> Vec<String> {
    if signer.is_empty() {
        if name.contains(':') {
            return vec!["ClusterTrustBundle without signer name must not have \":\" in its name".into()];
        }
        return names::dns1123_subdomain(name, prefix);
    }
    let wanted = format!("{}:", signer.replace('/', ":"));
    match name.strip_prefix(&wanted) {
        Some(own) => names::dns1123_subdomain(own, prefix),
        None => vec![format!("ClusterTrustBundle for signerName {signer} must be named with prefix {wanted}")],
    }
}

/// At least one certificate of an authority, each once, and nothing else.
fn check_bundle(bundle: &View<'_>, errors: &mut ErrorList) {
    if bundle.len() as i64 > BUNDLE_BYTES_MAX {
        errors.push(Error::too_long(bundle.path(), BUNDLE_BYTES_MAX));
        return;
    }
    let mut refuse = |why: String| errors.push(Error::invalid(bundle.path(), "<value omitted>", why));
    let mut anchors: Vec<(Vec<u8>, Vec<String>)> = Vec::new();
    let mut is_well_formed = true;
    for (i, block) in pem::blocks(bundle.str()).enumerate() {
        if let Some(wrong) = wrong_anchor(&block) {
            refuse(format!("entry {i} {wrong}"));
            is_well_formed = false;
            continue;
        }
        match anchors.iter_mut().find(|(bytes, _)| *bytes == block.bytes) {
            Some((_, indices)) => indices.push(i.to_string()),
            None => anchors.push((block.bytes, vec![i.to_string()])),
        }
    }
    if !is_well_formed {
        return;
    }
    if anchors.is_empty() {
        refuse("at least one trust anchor must be provided".into());
    }
    for (_, indices) in anchors.iter().filter(|(_, indices)| indices.len() > 1) {
        refuse(format!("duplicate trust anchor (indices [{}])", indices.join(" ")));
    }
}

fn wrong_anchor(block: &pem::Block) -> Option<String> {
    if block.label != "CERTIFICATE" {
        return Some(format!("has bad block type: {}", block.label));
    }
    if block.has_headers {
        return Some("has PEM block headers".into());
    }
    let Some(certificate) = X509Certificate::from_der(&block.bytes).ok().filter(|(rest, _)| rest.is_empty()) else {
        return Some("does not parse as X.509".into());
    };
    (!certificate.1.is_ca()).then(|| "does not have the CA bit set".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    fn certificate(is_ca: bool) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        if is_ca {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }
        params.self_signed(&key).unwrap().pem()
    }

    #[test]
    fn a_bundle_holds_authorities_and_is_named_after_its_signer() {
        let (ca, other) = (certificate(true), certificate(false));
        let errors_of = |name: &str, signer: &str, bundle: &str| -> Vec<String> {
            let object = json!({"metadata": {"name": name}, "spec": {"signerName": signer, "trustBundle": bundle}});
            check(&object, true).into_iter().map(|e| e.detail).collect()
        };
        assert_eq!(errors_of("a.b:s:x", "a.b/s", &ca), [""; 0]);
        assert_eq!(errors_of("x", "", &ca), [""; 0]);
        assert_eq!(
            errors_of("x", "a.b/s", &ca),
            ["ClusterTrustBundle for signerName a.b/s must be named with prefix a.b:s:"]
        );
        assert_eq!(errors_of("x", "", ""), ["at least one trust anchor must be provided"]);
        assert_eq!(errors_of("x", "", &other), ["entry 0 does not have the CA bit set"]);
        assert_eq!(errors_of("x", "", &format!("{ca}{ca}")), ["duplicate trust anchor (indices [0 1])"]);
    }
}
