//! Volumes that project several sources (upstream: `validateProjectedVolumeSource`).

use super::Options;
use super::volumes::{downward_file, file_mode, key_to_path, need};
use crate::registry::certificates::check_signer_name;
use crate::registry::checks;
use coxswain_api::field::{Error, ErrorList, Path, View};
use std::collections::BTreeSet;

pub(super) fn projected(source: &View<'_>, options: &Options, errors: &mut ErrorList) {
    file_mode(&source.child("defaultMode"), errors);
    let at = source.path();
    let mut paths: BTreeSet<&str> = BTreeSet::new();
    for projection in source.child("sources").items() {
        let mut count = 0;
        for kind in ["secret", "configMap"] {
            let kind = projection.child(kind);
            if !kind.exists() {
                continue;
            }
            count += 1;
            need(&kind, &["name"], errors);
            for item in kind.child("items").items() {
                key_to_path(&item, errors);
                let path = item.child("path").str();
                if !path.is_empty() && !paths.insert(path) {
                    errors.push(Error::invalid(at, kind.child("name").str(), "conflicting duplicate paths"));
                }
            }
        }
        let downward = projection.child("downwardAPI");
        if downward.exists() {
            count += 1;
            for file in downward.child("items").items() {
                downward_file(&file, downward.path(), errors);
                let path = file.child("path").str();
                if !path.is_empty() && !paths.insert(path) {
                    errors.push(Error::invalid(at, path, "conflicting duplicate paths"));
                }
            }
        }
        let token = projection.child("serviceAccountToken");
        if token.exists() {
            count += 1;
            let seconds = token.child("expirationSeconds");
            if seconds.i64() < 600 {
                let why = "may not specify a duration less than 10 minutes";
                errors.push(Error::invalid(seconds.path(), seconds.i64(), why));
            }
            if seconds.i64() > 1 << 32 {
                let why = "may not specify a duration larger than 2^32 seconds";
                errors.push(Error::invalid(seconds.path(), seconds.i64(), why));
            }
            let path = token.child("path");
            if path.str().is_empty() {
                errors.push(Error::required(&at.child("path"), ""));
            } else if !options.allow_non_local_token_path {
                checks::local_path(&path, &at.child("path"), errors);
            }
        }
        let bundle = projection.child("clusterTrustBundle");
        if bundle.exists() {
            count += 1;
            trust_bundle(&bundle, at, &mut paths, errors);
        }
        let certificate = projection.child("podCertificate");
        if certificate.exists() {
            count += 1;
            pod_certificate(&certificate, at, &mut paths, errors);
        }
        if count > 1 {
            errors.push(Error::forbidden(projection.path(), "may not specify more than 1 volume type per source"));
        }
    }
}

fn trust_bundle<'a>(bundle: &View<'a>, at: &Path, paths: &mut BTreeSet<&'a str>, errors: &mut ErrorList) {
    let (name, signer) = (bundle.child("name"), bundle.child("signerName"));
    match (name.exists(), signer.exists()) {
        (true, true) => {
            errors.push(Error::invalid(bundle.path(), bundle, "only one of name and signerName may be used"))
        }
        (true, false) => {
            if name.str().is_empty() {
                errors.push(Error::required(name.path(), "must be a valid object name"));
            }
            let selector = bundle.child("labelSelector");
            if selector.exists() {
                let why = "labelSelector must be unset if name is specified";
                errors.push(Error::invalid(selector.path(), &selector, why));
            }
        }
        (false, true) => {
            if signer.str().is_empty() {
                errors.push(Error::required(signer.path(), "must be a valid signer name"));
            }
            checks::label_selector(&bundle.child("labelSelector"), Default::default(), errors);
        }
        (false, false) => {
            errors.push(Error::required(bundle.path(), "either name or signerName must be specified"));
        }
    }
    let path = bundle.child("path");
    checks::required(&path, errors);
    checks::local_path(&path, path.path(), errors);
    if !paths.insert(path.str()) {
        errors.push(Error::invalid(at, path.str(), "conflicting duplicate paths"));
    }
}

const KEY_TYPES: &[&str] = &["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
const DAY_SECONDS: i64 = 24 * 60 * 60;

fn pod_certificate<'a>(certificate: &View<'a>, at: &Path, paths: &mut BTreeSet<&'a str>, errors: &mut ErrorList) {
    let signer = certificate.child("signerName");
    check_signer_name(&signer, errors);
    let annotations = certificate.child("userAnnotations");
    checks::user_annotations(&annotations, errors);
    let key_type = certificate.child("keyType");
    if !KEY_TYPES.contains(&key_type.str()) {
        errors.push(Error::not_supported(key_type.path(), key_type.str(), KEY_TYPES));
    }
    let seconds = certificate.child("maxExpirationSeconds");
    if seconds.exists() {
        let domain = signer.str().split('/').next().unwrap_or_default();
        let kubernetes = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
        let most = if kubernetes { DAY_SECONDS } else { 91 * DAY_SECONDS };
        if seconds.i64() < 3600 {
            let why = "if provided, maxExpirationSeconds must be >= 3600";
            errors.push(Error::invalid(seconds.path(), seconds.i64(), why));
        }
        if seconds.i64() > most {
            let why = format!("if provided, maxExpirationSeconds must be <= {most}");
            errors.push(Error::invalid(seconds.path(), seconds.i64(), why));
        }
    }
    let mut named = false;
    for field in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
        let path = certificate.child(field);
        if path.str().is_empty() {
            continue;
        }
        named = true;
        checks::local_path(&path, path.path(), errors);
        if !paths.insert(path.str()) {
            errors.push(Error::invalid(at, path.str(), "conflicting duplicate paths"));
        }
    }
    if !named {
        let why = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.push(Error::required(certificate.path(), why));
    }
}
