//! Files that are followed while the server runs: certificates and authorities are renewed under it
//! (upstream: `dynamiccertificates`).

use super::StartError;
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How often files are looked at. They are small, and few.
const LOOK: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 5_000 });

/// The certificate that the server shows, which may be exchanged at any time.
#[derive(Debug)]
pub(super) struct ServingCertificate(ArcSwap<CertifiedKey>);

impl ServingCertificate {
    /// Chain and key in PEM.
    pub(super) fn new(certificate_pem: &[u8], key_pem: &[u8]) -> Result<Self, StartError> {
        Ok(Self(ArcSwap::from_pointee(certified(certificate_pem, key_pem)?)))
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn certified(certificate_pem: &[u8], key_pem: &[u8]) -> Result<CertifiedKey, StartError> {
    let other = |e: &dyn std::fmt::Display| StartError::Other(format!("serving certificate: {e}"));
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate_pem).collect();
    let chain = chain.map_err(|e| other(&e))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|e| other(&e))?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()).map_err(|e| other(&e))
}

/// The TLS side of a listener whose certificate and key are files: when they change, new connections are shown the new one.
/// A pair that does not fit together, as between the writing of one file and the other, changes nothing.
pub fn tls_config_of_files(certificate: PathBuf, key: PathBuf) -> Result<Arc<ServerConfig>, StartError> {
    super::listen::tls_config_with(followed(certificate, key)?)
}

fn followed(certificate: PathBuf, key: PathBuf) -> Result<Arc<ServingCertificate>, StartError> {
    let read =
        |path: &PathBuf| std::fs::read(path).map_err(|e| StartError::Other(format!("reading {}: {e}", path.display())));
    let serving = Arc::new(ServingCertificate::new(&read(&certificate)?, &read(&key)?)?);
    let weak = Arc::downgrade(&serving);
    follow(vec![certificate, key], move |contents| {
        let Some(serving) = Weak::upgrade(&weak) else { return false };
        match certified(&contents[0], &contents[1]) {
            Ok(renewed) => {
                serving.0.store(Arc::new(renewed));
                tracing::info!("the serving certificate was renewed");
            }
            Err(error) => tracing::warn!(%error, "the serving certificate is not renewed"),
        }
        true
    });
    Ok(serving)
}

/// Calls `changed` with the contents of all files whenever one of them has changed, until it answers false. Does nothing
/// outside of a runtime.
pub fn follow(paths: Vec<PathBuf>, mut changed: impl FnMut(&[Vec<u8>]) -> bool + Send + 'static) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    let read = |paths: &[PathBuf]| paths.iter().map(std::fs::read).collect::<Result<Vec<_>, _>>();
    let mut seen = read(&paths).unwrap_or_default();
    runtime.spawn(async move {
        loop {
            tokio::time::sleep(LOOK).await;
            // A file that is being replaced may be missing for a moment.
            let Ok(now) = read(&paths) else { continue };
            if now != seen {
                if !changed(&now) {
                    return;
                }
                seen = now;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_renewed_pair_is_shown_and_half_a_pair_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let made = || rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
        let (first, second) = (made(), made());
        std::fs::write(&cert, first.cert.pem()).unwrap();
        std::fs::write(&key, first.signing_key.serialize_pem()).unwrap();
        let serving = followed(cert.clone(), key.clone()).unwrap();
        let shown = || serving.0.load().cert[0].clone();
        assert_eq!(&shown(), first.cert.der());
        std::fs::write(&cert, second.cert.pem()).unwrap();
        tokio::time::sleep(LOOK * 10).await;
        assert_eq!(&shown(), first.cert.der(), "a certificate without its key is shown");
        std::fs::write(&key, second.signing_key.serialize_pem()).unwrap();
        for _ in 0..500 {
            if &shown() == second.cert.der() {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
        panic!("the renewed certificate is not shown");
    }
}
