//! What a request for a pod's certificate asks for, and the proof that who asks has the key (upstream:
//! `ValidatePodCertificateRequestCreate`).

use super::{decoded, without_value};
use crate::registry::certificates::check_signer_name;
use crate::registry::certificates::keys::{self, Key};
use crate::registry::checks;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::names;

const KEY_BYTES_MAX: i64 = 10 * 1024;
const UID_BYTES_MAX: i64 = 128;
const EXPIRATION_SECONDS_MIN: i64 = 60 * 60;
const EXPIRATION_SECONDS_MAX: i64 = 91 * 24 * 60 * 60;
/// For signers of Kubernetes' own.
const EXPIRATION_SECONDS_MAX_OWN: i64 = 24 * 60 * 60;
const ANNOTATION_BYTES_MAX: usize = 256 * 1024;

pub(super) fn check(spec: &View<'_>) -> ErrorList {
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

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use coxswain_api::{Value, json};

    /// A key of RSA, and what it makes of `pod-uid` with the longest salt.
    const RSA_KEY: &str = "MIIBojANBgkqhkiG9w0BAQEFAAOCAY8AMIIBigKCAYEAu2W8mPTWQn6lRNsmMTHYzcRjDhivmolynAPk+BFtAEyotly/DGDU5mSK\
         r3Ebleu/g3W+7YzYLBB0xkRmfOQ6RqiMPkjgZdfJ8hU8Z4ZnAgeu6I/DtonhhTjwS6uEhS38gEN+rpsYZ3g5EAcbC4JzXljlmCLD\
         AHMbbvkKsrxWIUe/pp8IL0ejdwCohrHRtdrEJ1ebaILq8MQuJ2WPleKPiCyqNYhcgQDI7IlA0Vnt0i9SEGv1UKpMX5DDoCc9g7Zn\
         JgrOQMY+HwLw6Cw7/0CdalQyW9Kjr1mtjcs8mPiVizzaO5fl7SaLpiSVEEzLoHGk9RPEH12jFyiKyFkkmCblfMH9fpN+0ECjPdiR\
         6xS5nxnzmSf2SlhdEynoj9p9/AGKcOfN19ol/iQnZiCFiswpPY7Zne1mzNiv82EK+fYYgU5NO3zMd8ETOnlh4mYnWGSEmJFGdIBS\
         xGMwoE/0B/BvXxwwiUOlyOZf5iBZNwcScQWwNGWgQi9IJzD4w82yNb+tAgMBAAE=";
    const RSA_PROOF: &str = "aHIqJaETaVSJzHhfOvChMAK1acALGTsOYncu23CJBx0s/rIIlrd0IZsMgt7Rl4WzaAvF6V0aGPAuKTiv7WqWs/3DiF+UBKcCRZ8B\
         QERQELVQX9NW48vQmJv00jD9jZIpl1qzBzN9qo+upK/d0+6AWXxGAFnj7jGbpUAA1V72W976hAn8p5uYF+LZEml61+FFIwTFPlce\
         QZxQSgGF4pl7KuNbTw95mwJVrUOMGxLWvAINe7l+dc0/Umwr2veflWEIAkpFBtV98CeNFUvktLOOrf61agy1JTK6tAbKnSLs3Jz1\
         +aclrQYmKLROeNS17usSsW2RFdlARFqcHRRk4d0MZfCsuStSEGrKXSJPyuowjslG4Ss5fsAbdUe4ik41Ezgb3Qs18sqct8OkyfXC\
         i0Pr4O00N0HIK56Df9n1IFfNylV3Al7cUoQUylZApCWJHkWsbALtgXEIhQh2LQ/lmp5h59eAQGHFFvd0dDtN0YxDA/Nk/BnWFo8l\
         YiUBMLcEMgvh";

    fn errors_of(changes: Value) -> Vec<String> {
        let mut spec = json!({"signerName": "a.b/c", "podName": "p", "podUID": "pod-uid", "serviceAccountName": "s",
            "serviceAccountUID": "u", "nodeName": "n", "nodeUID": "v", "maxExpirationSeconds": 3600});
        for (name, value) in changes.as_object().unwrap() {
            spec[name] = value.clone();
        }
        let object = json!({"spec": spec});
        check(&View::root(&object).child("spec")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_request_proves_that_its_key_is_at_hand() {
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        let encode = |der: &[u8]| base64::engine::general_purpose::STANDARD.encode(der);
        let request = encode(request.der());
        assert_eq!(errors_of(json!({"stubPKCS10Request": request})), [""; 0]);
        let either =
            "spec: Invalid value: exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set";
        assert_eq!(errors_of(json!({"stubPKCS10Request": request, "pkixPublicKey": RSA_KEY})), [either]);
        assert_eq!(errors_of(json!({})), [either]);
        assert_eq!(errors_of(json!({"pkixPublicKey": RSA_KEY, "proofOfPossession": RSA_PROOF})), [""; 0]);
        assert_eq!(
            errors_of(json!({"pkixPublicKey": RSA_KEY, "proofOfPossession": RSA_PROOF, "podUID": "other"})),
            ["spec.proofOfPossession: Invalid value: could not verify proof-of-possession signature"]
        );
    }

    #[test]
    fn annotations_have_domains_and_signers_of_kubernetes_sign_for_a_day() {
        let key = json!({"pkixPublicKey": RSA_KEY, "proofOfPossession": RSA_PROOF, "maxExpirationSeconds": 86_401,
            "signerName": "x.kubernetes.io/y", "unverifiedUserAnnotations": {"a.b/c": "", "d": ""}});
        assert_eq!(
            errors_of(key),
            [
                "spec.unverifiedUserAnnotations: Invalid value: \"d\": must be a domain-prefixed key (such as \"acme.io/foo\")",
                "spec.maxExpirationSeconds: Invalid value: 86401: must be in the range [3600, 86400]",
            ]
        );
    }
}
