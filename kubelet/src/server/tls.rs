//! The server's certificate, and whose client certificates count.

use crate::config::Config;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

pub(super) fn acceptor(config: &Config) -> Result<TlsAcceptor, String> {
    let settings = &config.settings;
    let (cert, key) = if settings.tls_cert_file.is_empty() {
        self_signed(config)?
    } else {
        (PathBuf::from(&settings.tls_cert_file), PathBuf::from(&settings.tls_private_key_file))
    };
    let failed = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let certificates = read_certificates(&cert)?;
    let key_der = PrivateKeyDer::from_pem_file(&key).map_err(|e| failed(&key, &e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let client_ca = &settings.authentication.x509.client_ca_file;
    let builder = if client_ca.is_empty() {
        builder.with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(Path::new(client_ca))? {
            roots.add(certificate).map_err(|e| failed(Path::new(client_ca), &e))?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).allow_unauthenticated().build();
        builder.with_client_cert_verifier(verifier.map_err(|e| e.to_string())?)
    };
    let mut tls = builder.with_single_cert(certificates, key_der).map_err(|e| failed(&cert, &e))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    CertificateDer::pem_file_iter(path).map_err(|e| failed(&e))?.collect::<Result<_, _>>().map_err(|e| failed(&e))
}

/// A certificate of our own making, kept for the next start (upstream: `kubelet.crt` and `kubelet.key` in the certificate directory).
fn self_signed(config: &Config) -> Result<(PathBuf, PathBuf), String> {
    let (cert, key) = (config.cert_dir.join("kubelet.crt"), config.cert_dir.join("kubelet.key"));
    if cert.exists() && key.exists() {
        return Ok((cert, key));
    }
    let mut names = vec![config.node_name.clone()];
    names.extend(crate::node::addresses(config));
    let made = rcgen::generate_simple_self_signed(names).map_err(|e| e.to_string())?;
    let io = |e: std::io::Error| format!("{}: {e}", config.cert_dir.display());
    std::fs::create_dir_all(&config.cert_dir).map_err(io)?;
    write_private(&key, &made.signing_key.serialize_pem()).map_err(io)?;
    std::fs::write(&cert, made.cert.pem()).map_err(io)?;
    Ok((cert, key))
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}
