//! Client certificates: the common name is the user, the organizations are the groups
//! (upstream: `authentication/request/x509`).

use super::remembered::{Remembered, fingerprint};
use super::{CREDENTIAL_ID, ConfigError, Peer, Refused};
use crate::request::User;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::Digest;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The attribute of a subject that carries the uid of a user.
const UID_OID: &str = "1.3.6.1.4.1.57683.2";

/// Verifies chains against one bundle of authorities, for client authentication, at the present time.
pub struct ClientCertificates {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Users of chains that were verified; a certificate that expires stays good for that much longer.
    good: Remembered<Option<User>>,
}

impl ClientCertificates {
    /// `bundle` is PEM.
    pub fn new(bundle: &[u8]) -> Result<Self, ConfigError> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle) {
            let certificate = certificate.map_err(|e| ConfigError::Other(format!("client CA bundle: {e}")))?;
            roots.add(certificate).map_err(|e| ConfigError::Other(format!("client CA bundle: {e}")))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|e| ConfigError::Other(format!("client CA bundle: {e}")))?;
        Ok(Self { verifier, good: Remembered::default() })
    }

    /// Checks the chain and returns its leaf; none if the client presented nothing.
    pub(super) fn verify<'a>(&self, peer: &'a Peer) -> Result<Option<&'a [u8]>, Refused> {
        let Some((leaf, rest)) = peer.certificates.split_first() else { return Ok(None) };
        let leaf_der = CertificateDer::from_slice(leaf);
        let rest: Vec<CertificateDer<'_>> = rest.iter().map(|c| CertificateDer::from_slice(c)).collect();
        self.verifier
            .verify_client_cert(&leaf_der, &rest, UnixTime::now())
            .map_err(|e| Refused(format!("verifying the client certificate failed: {e}")))?;
        Ok(Some(leaf))
    }

    pub fn authenticate(&self, peer: &Peer) -> Result<Option<User>, Refused> {
        if peer.certificates.is_empty() {
            return Ok(None);
        }
        let chain = fingerprint(peer.certificates.iter().map(Vec::as_slice));
        if let Some(user) = self.good.get(&chain) {
            return Ok(user);
        }
        let user = match self.verify(peer)? {
            Some(leaf) => user_of(leaf)?,
            None => None,
        };
        self.good.put(chain, user.clone());
        Ok(user)
    }
}

/// The common name of a certificate's subject, the last if there are several.
pub(super) fn common_name(der: &[u8]) -> Result<String, Refused> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| Refused(e.to_string()))?;
    Ok(last_text(certificate.subject().iter_common_name()))
}

fn last_text<'a>(attributes: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>) -> String {
    attributes.filter_map(|a| a.as_str().ok()).last().unwrap_or_default().to_owned()
}

/// A subject without common name is nobody.
fn user_of(der: &[u8]) -> Result<Option<User>, Refused> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| Refused(e.to_string()))?;
    let subject = certificate.subject();
    let name = last_text(subject.iter_common_name());
    if name.is_empty() {
        return Ok(None);
    }
    let groups = subject.iter_organization().filter_map(|a| a.as_str().ok()).map(str::to_owned).collect();
    let mut uids = Vec::new();
    for attribute in subject.iter_attributes().filter(|a| a.attr_type().to_id_string() == UID_OID) {
        let text = attribute.as_str().map_err(|_| Refused("unable to parse UID into a string".into()))?;
        uids.push(text.to_owned());
    }
    if uids.len() > 1 {
        return Err(Refused(format!("expected 1 UID, but found multiple: {uids:?}")));
    }
    if uids.first().is_some_and(String::is_empty) {
        return Err(Refused("UID cannot be an empty string".into()));
    }
    let fingerprint: String = sha2::Sha256::digest(der).iter().map(|b| format!("{b:02x}")).collect();
    let extra = [(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={fingerprint}")])].into();
    Ok(Some(User { name, uid: uids.pop().unwrap_or_default(), groups, extra }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

    fn authority(name: &str) -> (String, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        (pem, Issuer::new(params, key))
    }

    fn client(issuer: &Issuer<'static, KeyPair>, usage: ExtendedKeyUsagePurpose, days: i64) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        params.distinguished_name.push(DnType::CommonName, "alice");
        params.extended_key_usages = vec![usage];
        if days < 0 {
            params.not_after = rcgen::date_time_ymd(2000, 1, 1);
        }
        params.signed_by(&key, issuer).unwrap().der().to_vec()
    }

    #[test]
    fn only_a_valid_client_certificate_of_the_authority_names_a_user() {
        let (pem, ours) = authority("ours");
        let (_, other) = authority("other");
        let certificates = ClientCertificates::new(pem.as_bytes()).unwrap();
        let check = |der: Vec<u8>| certificates.authenticate(&Peer::new(None, vec![der]));
        let user = check(client(&ours, ExtendedKeyUsagePurpose::ClientAuth, 1)).unwrap().unwrap();
        assert_eq!((user.name.as_str(), user.groups.as_slice()), ("alice", &["system:masters".to_owned()][..]));
        assert!(user.extra[CREDENTIAL_ID][0].starts_with("X509SHA256="));
        assert!(check(client(&ours, ExtendedKeyUsagePurpose::ServerAuth, 1)).is_err());
        assert!(check(client(&ours, ExtendedKeyUsagePurpose::ClientAuth, -1)).is_err());
        assert!(check(client(&other, ExtendedKeyUsagePurpose::ClientAuth, 1)).is_err());
        assert_eq!(certificates.authenticate(&Peer::default()).unwrap(), None);
    }
}
