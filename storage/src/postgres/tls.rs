//! TLS to the database, by rustls. The words are those of every Postgres client: `sslmode`, `sslrootcert`, `sslcert`,
//! `sslkey`, in a URL or in a list of `key=value`.

use crate::{Error, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};

/// How far the server's certificate is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Not at all: against eavesdroppers only.
    Nothing,
    /// It must come from the authority, for whatever name.
    Chain,
    /// It must come from the authority and be for the host that was asked for.
    Full,
}

/// What the address of the database says of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub mode: SslMode,
    pub verify: Verify,
    pub root: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// Parts what the address says of TLS from the rest, which the library understands.
pub fn split(address: &str) -> Result<(String, Settings)> {
    let mut settings =
        Settings { mode: SslMode::Prefer, verify: Verify::Nothing, root: None, certificate: None, key: None };
    let is_url = address.starts_with("postgres://") || address.starts_with("postgresql://");
    let rest = if is_url {
        let (base, query) = address.split_once('?').unwrap_or((address, ""));
        let mut kept = Vec::new();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !settings.take(name, &percent_decoded(value))? {
                kept.push(pair);
            }
        }
        if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) }
    } else {
        let mut kept = String::new();
        for (name, value) in pairs(address)? {
            if !settings.take(&name, &value)? {
                let value = value.replace('\\', "\\\\").replace('\'', "\\'");
                kept.push_str(&format!("{name}='{value}' "));
            }
        }
        kept
    };
    // As libpq: an authority that was named is not ignored.
    if settings.root.is_some() && settings.verify == Verify::Nothing && settings.mode == SslMode::Require {
        settings.verify = Verify::Chain;
    }
    Ok((rest, settings))
}

impl Settings {
    /// Whether the parameter was one of these.
    fn take(&mut self, name: &str, value: &str) -> Result<bool> {
        match name {
            "sslmode" => {
                (self.mode, self.verify) = match value {
                    "disable" => (SslMode::Disable, Verify::Nothing),
                    "allow" | "prefer" => (SslMode::Prefer, Verify::Nothing),
                    "require" => (SslMode::Require, Verify::Nothing),
                    "verify-ca" => (SslMode::Require, Verify::Chain),
                    "verify-full" => (SslMode::Require, Verify::Full),
                    other => return Err(refused(format!("sslmode={other} is none that there is"))),
                };
            }
            "sslrootcert" => self.root = Some(value.into()),
            "sslcert" => self.certificate = Some(value.into()),
            "sslkey" => self.key = Some(value.into()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub fn connector(&self) -> Result<Connector> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = match (&self.root, self.verify) {
            (_, Verify::Nothing) => None,
            (Some(path), _) => Some(roots(path)?),
            (None, _) => {
                return Err(refused(
                    "sslmode=verify-ca and verify-full need sslrootcert=FILE, the authority".to_owned(),
                ));
            }
        };
        let chain = match roots {
            Some(roots) => {
                let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
                Some(built.map_err(|e| refused(format!("sslrootcert: {e}")))?)
            }
            None => None,
        };
        let verifier = Arc::new(Verifier { provider: provider.clone(), chain, full: self.verify == Verify::Full });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| refused(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let chain: std::result::Result<Vec<_>, _> =
                    CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
                let chain = chain.map_err(|e| refused(format!("sslcert {}: {e}", certificate.display())))?;
                let private = PrivateKeyDer::from_pem_file(key);
                let private = private.map_err(|e| refused(format!("sslkey {}: {e}", key.display())))?;
                builder.with_client_auth_cert(chain, private).map_err(|e| refused(format!("sslcert: {e}")))?
            }
            (None, None) => builder.with_no_client_auth(),
            _ => return Err(refused("sslcert and sslkey go together".to_owned())),
        };
        Ok(Connector { config: Arc::new(config) })
    }
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let failed = |e: &dyn std::fmt::Display| refused(format!("sslrootcert {}: {e}", path.display()));
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| failed(&e))? {
        roots.add(certificate.map_err(|e| failed(&e))?).map_err(|e| failed(&e))?;
    }
    if roots.is_empty() {
        return Err(failed(&"there is no certificate in it"));
    }
    Ok(roots)
}

fn refused(what: String) -> Error {
    Error::Unavailable { operation: "open", source: what.into() }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok());
        match hex.filter(|_| first == b'%') {
            Some(byte) => (bytes.push(byte), rest = &tail[2..]).1,
            None => (bytes.push(first), rest = tail).1,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `key=value key='a value'`, with a backslash before what is not to be understood.
fn pairs(text: &str) -> Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let Some((name, tail)) = rest.split_once('=') else {
            return Err(refused(format!("{rest:?} in the address of the database is not key=value")));
        };
        let tail = tail.trim_start();
        let quoted = tail.starts_with('\'');
        let mut characters = tail.char_indices().skip(usize::from(quoted));
        let (mut value, mut end, mut closed) = (String::new(), tail.len(), !quoted);
        while let Some((at, c)) = characters.next() {
            match c {
                '\\' => value.extend(characters.next().map(|(_, c)| c)),
                '\'' if quoted => {
                    (end, closed) = (at + 1, true);
                    break;
                }
                c if c.is_whitespace() && !quoted => {
                    end = at;
                    break;
                }
                c => value.push(c),
            }
        }
        if !closed {
            return Err(refused("a quote in the address of the database is not closed".to_owned()));
        }
        pairs.push((name.trim().to_owned(), value));
        rest = tail[end..].trim_start();
    }
    Ok(pairs)
}

/// Verifies as much as was asked for. That the server holds the key of its certificate is verified always.
#[derive(Debug)]
struct Verifier {
    provider: Arc<rustls::crypto::CryptoProvider>,
    chain: Option<Arc<WebPkiServerVerifier>>,
    full: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        // The name is looked at last, so that a wrong one means that all else is right.
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.full => Ok(ServerCertVerified::assertion()),
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Makes the TLS side of a connection for each host.
#[derive(Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
}

pub struct Connect {
    config: Arc<ClientConfig>,
    /// None for a socket of this machine, on which TLS is not spoken.
    name: Option<ServerName<'static>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Connector {
    type Stream = Stream<S>;
    type TlsConnect = Connect;
    type Error = std::convert::Infallible;

    fn make_tls_connect(&mut self, host: &str) -> std::result::Result<Connect, Self::Error> {
        let name = ServerName::try_from(host.to_owned()).ok();
        Ok(Connect { config: self.config.clone(), name })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for Connect {
    type Stream = Stream<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let connector = tokio_rustls::TlsConnector::from(self.config);
        Box::pin(async move {
            let nameless = || io::Error::new(io::ErrorKind::InvalidInput, "the host's name cannot be one for TLS");
            connector.connect(self.name.ok_or_else(nameless)?, stream).await.map(Stream)
        })
    }
}

pub struct Stream<S>(tokio_rustls::client::TlsStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Stream<S> {
    /// What binds a password exchange to this connection: the hash of the server's certificate, by the algorithm of its
    /// signature (RFC 5929), so that nobody in between can pass the exchange on.
    fn channel_binding(&self) -> ChannelBinding {
        let certificates = self.0.get_ref().1.peer_certificates();
        let Some(certificate) = certificates.and_then(|c| c.first()) else { return ChannelBinding::none() };
        match signature_digest(certificate) {
            Some(algorithm) => {
                ChannelBinding::tls_server_end_point(ring::digest::digest(algorithm, certificate).as_ref().to_vec())
            }
            None => ChannelBinding::none(),
        }
    }
}

fn signature_digest(certificate: &[u8]) -> Option<&'static ring::digest::Algorithm> {
    use x509_parser::oid_registry as oid;
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let algorithm = &parsed.signature_algorithm.algorithm;
    if *algorithm == oid::OID_PKCS1_SHA384WITHRSA || *algorithm == oid::OID_SIG_ECDSA_WITH_SHA384 {
        return Some(&ring::digest::SHA384);
    }
    if *algorithm == oid::OID_PKCS1_SHA512WITHRSA || *algorithm == oid::OID_SIG_ECDSA_WITH_SHA512 {
        return Some(&ring::digest::SHA512);
    }
    // What was weaker is taken for SHA-256, as the RFC has it; what names no hash has no binding.
    let known = [
        oid::OID_PKCS1_SHA256WITHRSA,
        oid::OID_SIG_ECDSA_WITH_SHA256,
        oid::OID_PKCS1_SHA1WITHRSA,
        oid::OID_PKCS1_MD5WITHRSAENC,
    ];
    known.contains(algorithm).then_some(&ring::digest::SHA256)
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_address_says_of_tls_is_understood_in_both_forms() {
        let url = "postgres://u:p%40@one:5432,two/db?sslmode=verify-full&sslrootcert=%2Fa%20b.pem&connect_timeout=3";
        let (rest, settings) = split(url).unwrap();
        assert_eq!(rest, "postgres://u:p%40@one:5432,two/db?connect_timeout=3");
        assert_eq!((settings.mode, settings.verify), (SslMode::Require, Verify::Full));
        assert_eq!(settings.root, Some("/a b.pem".into()));
        let (rest, settings) =
            split(r"host=/run user=me password='it\'s' sslmode=require sslrootcert = '/a b.pem'").unwrap();
        assert_eq!(rest, r"host='/run' user='me' password='it\'s' ");
        assert_eq!((settings.mode, settings.verify), (SslMode::Require, Verify::Chain));
        assert_eq!(settings.root, Some("/a b.pem".into()));
        assert_eq!(split("host=/run").unwrap().1.mode, SslMode::Prefer);
        assert!(split("sslmode=always").is_err());
        assert!(split("host='open").is_err());
    }
}
