//! How the server reaches kubelets, pods and services.

use super::target::Target;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How kubelets are spoken to (upstream: `--kubelet-client-certificate`, `--kubelet-certificate-authority`, …).
#[derive(Clone, Debug)]
pub struct KubeletConfig {
    /// PEM of the certificate and key that this server presents.
    pub client_certificate_pem: Vec<u8>,
    pub client_key_pem: Vec<u8>,
    /// PEM bundle that kubelets' certificates are checked against; if empty they are not checked, as upstream's default is.
    pub ca_pem: Vec<u8>,
    /// Which of a node's addresses to take, in this order.
    pub preferred_address_types: Vec<String>,
}

impl Default for KubeletConfig {
    fn default() -> Self {
        Self {
            client_certificate_pem: Vec::new(),
            client_key_pem: Vec::new(),
            ca_pem: Vec::new(),
            preferred_address_types: ["Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"]
                .map(String::from)
                .into(),
        }
    }
}

pub struct Dialer {
    kubelet_tls: Arc<ClientConfig>,
    /// For proxies to pods and services that speak TLS: nobody knows who signed their certificates.
    open_tls: Arc<ClientConfig>,
    pub preferred_address_types: Vec<String>,
}

impl Dialer {
    pub fn new(config: &KubeletConfig) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = || {
            ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .map_err(|e| e.to_string())
        };
        let open = || -> Arc<dyn ServerCertVerifier> { Arc::new(AnyServer(provider.clone())) };
        let open_tls = builder()?.dangerous().with_custom_certificate_verifier(open()).with_no_client_auth();
        let verified = if config.ca_pem.is_empty() {
            builder()?.dangerous().with_custom_certificate_verifier(open())
        } else {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&config.ca_pem) {
                let certificate = certificate.map_err(|e| format!("kubelet certificate authority: {e}"))?;
                roots.add(certificate).map_err(|e| format!("kubelet certificate authority: {e}"))?;
            }
            builder()?.with_root_certificates(roots)
        };
        let kubelet_tls = if config.client_certificate_pem.is_empty() {
            verified.with_no_client_auth()
        } else {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&config.client_certificate_pem).collect();
            let chain = chain.map_err(|e| format!("kubelet client certificate: {e}"))?;
            let key = PrivateKeyDer::from_pem_slice(&config.client_key_pem)
                .map_err(|e| format!("kubelet client key: {e}"))?;
            verified.with_client_auth_cert(chain, key).map_err(|e| format!("kubelet client certificate: {e}"))?
        };
        Ok(Self {
            kubelet_tls: Arc::new(kubelet_tls),
            open_tls: Arc::new(open_tls),
            preferred_address_types: config.preferred_address_types.clone(),
        })
    }

    pub async fn dial(&self, target: &Target) -> std::io::Result<Connection> {
        let connect = TcpStream::connect((target.host_name.as_str(), target.port));
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(stream) => stream.map_err(|e| failed_to_dial(target, e.kind(), &why(&e)))?,
            Err(_) => return Err(failed_to_dial(target, ErrorKind::TimedOut, "i/o timeout")),
        };
        stream.set_nodelay(true)?;
        if !target.is_tls {
            return Ok(Connection::Plain(stream));
        }
        let config = if target.is_kubelet { &self.kubelet_tls } else { &self.open_tls };
        let name = ServerName::try_from(target.host_name.clone()).map_err(std::io::Error::other)?;
        let stream = tokio_rustls::TlsConnector::from(config.clone()).connect(name, stream).await?;
        Ok(Connection::Tls(Box::new(stream)))
    }
}

fn failed_to_dial(target: &Target, kind: ErrorKind, why: &str) -> std::io::Error {
    std::io::Error::new(kind, format!("dial tcp {}: {why}", target.host))
}

/// As Go words it, since people look for these words.
fn why(error: &std::io::Error) -> String {
    let known = match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused",
        ErrorKind::ConnectionReset => "connection reset by peer",
        ErrorKind::HostUnreachable => "no route to host",
        ErrorKind::NetworkUnreachable => "network is unreachable",
        ErrorKind::TimedOut => "connection timed out",
        _ => return error.to_string(),
    };
    format!("connect: {known}")
}

pub enum Connection {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

macro_rules! on_stream {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Connection::Plain($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Connection::Tls($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $call
            }
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        on_stream!(self, s => s.poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        on_stream!(self, s => s.poll_write(cx, buf))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        on_stream!(self, s => s.poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        on_stream!(self, s => s.poll_shutdown(cx))
    }
}

/// Takes any server, but makes it prove that it holds the key of the certificate it shows.
#[derive(Debug)]
struct AnyServer(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
