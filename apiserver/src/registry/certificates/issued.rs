//! What a signer issues for a pod: a chain of certificates whose first is for the key that was asked about, for as long as was
//! allowed, and times that agree with it (upstream: `ValidatePodCertificateRequestStatusUpdate`).

use super::keys::{self, Key};
use super::pem;
use super::pod_request::{decoded, without_value};
use coxswain_api::field::{Error, ErrorList, View};
use jiff::{Span, Timestamp};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const CHAIN_BYTES_MAX: i64 = 100 * 1024;
const LIFETIME_SECONDS_MIN: i64 = 60 * 60;
const CLOCK_SKEW_SECONDS: i64 = 5 * 60;
const REFRESH_MARGIN_MINUTES: i64 = 10;

/// Only the first thing that is wrong is said, names in the certificate excepted.
pub(super) fn check(now: Timestamp, status: &View<'_>, spec: &View<'_>, errors: &mut ErrorList) {
    let chain = status.child("certificateChain");
    let refuse = |why: &str| Error::invalid(chain.path(), chain.str(), why);
    if chain.len() as i64 > CHAIN_BYTES_MAX {
        errors.push(Error::too_long(chain.path(), CHAIN_BYTES_MAX));
        return;
    }
    let Some((block, rest)) = pem::next_block(chain.str()) else {
        errors.push(refuse("issued certificate chain must contain at least one certificate"));
        return;
    };
    if block.label != "CERTIFICATE" {
        errors.push(refuse("issued certificate chain must consist entirely of CERTIFICATE PEM blocks"));
        return;
    }
    let Some(leaf) = certificate(&block.bytes) else {
        errors.push(refuse("leaf certificate does not parse as valid X.509"));
        return;
    };
    check_names(&leaf, &chain, errors);
    let key = match wanted_key(spec) {
        Ok(key) => key,
        Err(error) => {
            errors.push(error);
            return;
        }
    };
    if key != Key::Other && keys::of_info(leaf.public_key()) != Some(Some(key)) {
        errors.push(refuse("leaf certificate was not issued to the requested public key"));
        return;
    }
    let [not_before, not_after, refresh] = ["notBefore", "notAfter", "beginRefreshAt"].map(|field| status.child(field));
    for (time, why) in [
        (&not_before, "must be present and consistent with the issued certificate"),
        (&not_after, "must be present and consistent with the issued certificate"),
        (&refresh, "must be present and in the range [notbefore+10min, notafter-10min]"),
    ] {
        if !time.exists() {
            errors.push(Error::required(time.path(), why));
        }
    }
    let times = [&not_before, &not_after, &refresh].map(|time| time.str().parse::<Timestamp>());
    let [Ok(from), Ok(to), Ok(refresh_at)] = times else { return };
    if errors.is_empty() {
        let wrong =
            check_times(now, &leaf, spec, &chain, [(&not_before, from), (&not_after, to), (&refresh, refresh_at)]);
        errors.extend(wrong.or_else(|| check_rest(rest).map(refuse)));
    }
}

fn certificate(der: &[u8]) -> Option<X509Certificate<'_>> {
    X509Certificate::from_der(der).ok().filter(|(rest, _)| rest.is_empty()).map(|(_, certificate)| certificate)
}

fn check_names(leaf: &X509Certificate<'_>, chain: &View<'_>, errors: &mut ErrorList) {
    let names = leaf.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|extension| &extension.value.general_names);
    let mut refuse = |name: &str, why: &str| errors.push(Error::invalid(chain.path(), name, why));
    for name in names.clone() {
        let GeneralName::DNSName(name) = name else { continue };
        if name.is_empty() {
            refuse(name, "leaf certificate should not contain empty DNSName");
        }
        if name.contains("..") {
            refuse(name, "leaf certificate's DNSName should not contain '..'");
        }
        if name.starts_with('.') || name.ends_with('.') {
            refuse(name, "leaf certificate's DNSName should not start or end with '.'");
        }
    }
    for name in names {
        let GeneralName::RFC822Name(address) = name else { continue };
        if !is_address(address) {
            refuse(address, "leaf certificate should not contain invalid EmailAddress");
        }
    }
}

/// The form of an address, with or without a name before it.
fn is_address(text: &str) -> bool {
    let address = match text.trim().strip_suffix('>').map(|t| t.rsplit_once('<')) {
        Some(Some((_, address))) => address,
        Some(None) => return false,
        None => text.trim(),
    };
    let is_atoms = |part: &str| {
        let is_atom = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || !c.is_ascii();
        part.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atom))
    };
    let is_quoted = |part: &str| part.len() > 1 && part.starts_with('"') && part.ends_with('"');
    address.rsplit_once('@').is_some_and(|(own, domain)| (is_atoms(own) || is_quoted(own)) && is_atoms(domain))
}

/// The key of the request.
fn wanted_key(spec: &View<'_>) -> Result<Key, Error> {
    let (request, key) = (spec.child("stubPKCS10Request"), spec.child("pkixPublicKey"));
    if request.is_empty() {
        let parsed = keys::of_public_key(&decoded(&key));
        return parsed.ok_or_else(|| without_value(key.path(), "must be a valid PKIX-serialized public key"));
    }
    keys::of_request(&decoded(&request)).ok_or_else(|| without_value(request.path(), "must be a valid PKCS#10 CSR"))
}

fn check_times(
    now: Timestamp,
    leaf: &X509Certificate<'_>,
    spec: &View<'_>,
    chain: &View<'_>,
    [(before_view, from), (after_view, to), (refresh_view, refresh)]: [(&View<'_>, Timestamp); 3],
) -> Option<Error> {
    let refuse = |view: &View<'_>, why: &str| Some(Error::invalid(view.path(), view, why));
    let validity = leaf.validity();
    let [starts, ends] = [validity.not_before.timestamp(), validity.not_after.timestamp()];
    if from.as_second() != starts {
        return refuse(before_view, "must be set to the NotBefore time encoded in the leaf certificate");
    }
    if from.duration_since(now).abs().as_millis_f64() >= (CLOCK_SKEW_SECONDS * 1000) as f64 {
        return refuse(before_view, "must be set to within 5 minutes of kube-apiserver's current time");
    }
    if to.as_second() != ends {
        return refuse(after_view, "must be set to the NotAfter time encoded in the leaf certificate");
    }
    let lifetime = ends - starts;
    let refuse_lifetime = |why: String| Some(Error::invalid(chain.path(), lifetime * 1_000_000_000, why));
    if lifetime < LIFETIME_SECONDS_MIN {
        return refuse_lifetime("leaf certificate lifetime must be >= 1 hour".into());
    }
    let allowed = spec.child("maxExpirationSeconds").i64();
    if lifetime > allowed {
        let why = format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({allowed})");
        return refuse_lifetime(why);
    }
    let margin = Span::new().minutes(REFRESH_MARGIN_MINUTES);
    if from.checked_add(margin).is_ok_and(|earliest| refresh < earliest) {
        return refuse(refresh_view, "must be at least 10 minutes after status.notBefore");
    }
    if to.checked_sub(margin).is_ok_and(|latest| refresh > latest) {
        return refuse(refresh_view, "must be at least 10 minutes before status.notAfter");
    }
    None
}

/// What follows the first certificate is certificates too. Who signed whom is not checked.
fn check_rest(rest: &str) -> Option<&'static str> {
    pem::blocks(rest).find_map(|block| match block.label.as_str() {
        "CERTIFICATE" if certificate(&block.bytes).is_some() => None,
        "CERTIFICATE" => Some("intermediate certificate does not parse as valid X.509"),
        // Upstream's spelling.
        _ => Some("issued certificate chain must consist entirely of CERTFICATE PEM blocks"),
    })
}
