//! The socket: TLS, HTTP/1.1 and HTTP/2, one task a connection (upstream: `genericapiserver`'s `SecureServingInfo`).

use super::certificates::ServingCertificate;
use super::coalesced::Coalesced;
use super::{Server, StartError};
use crate::authentication::Peer;
use crate::front::{Caller, Front, RequestBody};
use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulConnection;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection of HTTP/1.1 may wait for the headers of its next request, idle time included: as long as upstream
/// keeps idle connections, so that clients who pool theirs do not find them closed.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);
/// Streams of one HTTP/2 connection (upstream: `--http2-max-streams-per-connection`).
const STREAMS_MAX: u32 = 250;
/// Connections served at once; beyond it new ones wait in the socket's queue.
const CONNECTIONS_MAX: usize = 50_000;
/// Requests under way have this long to finish when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The TLS side of a listener: certificate chain and key in PEM.
pub fn tls_config(certificate_pem: &[u8], key_pem: &[u8]) -> Result<Arc<ServerConfig>, StartError> {
    tls_config_with(Arc::new(ServingCertificate::new(certificate_pem, key_pem)?))
}

pub(super) fn tls_config_with(serving: Arc<ServingCertificate>) -> Result<Arc<ServerConfig>, StartError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| StartError::Other(format!("serving certificate: {e}")))?
        .with_client_cert_verifier(Arc::new(AnyClient(provider)))
        .with_cert_resolver(serving);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Server {
    /// Accepts connections until the server is told to stop, then lets those under way finish.
    pub async fn listen(&self, listener: TcpListener, tls: Arc<ServerConfig>) {
        let acceptor = tokio_rustls::TlsAcceptor::from(tls);
        let mut shutdown = self.front.shutdown.clone();
        let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
        loop {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = shutdown.wait_for(|stop| *stop) => break,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: give others time to close some.
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (front, acceptor) = (self.front.clone(), acceptor.clone());
            tokio::spawn(async move {
                if let Err(error) = connection(front, acceptor, stream, address).await {
                    tracing::debug!(%address, %error, "a connection ended");
                }
                drop(place);
            });
        }
        let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, places.acquire_many(all)).await;
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn connection(
    front: Arc<Front>,
    acceptor: tokio_rustls::TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificates = certificates.iter().map(|c| c.as_ref().to_vec()).collect();
    let caller = Caller::Peer(Arc::new(Peer::new(Some(address), certificates)));
    let mut shutdown = front.shutdown.clone();
    let go_away = Arc::new(tokio::sync::Notify::new());
    let ask = go_away.clone();
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (front, caller) = (front.clone(), caller.clone());
        // Long-lived connections stay with one server for ever unless they are asked to leave now and then.
        if request.version() == http::Version::HTTP_2
            && front.goaway_chance > 0.0
            && rand::random::<f64>() < front.goaway_chance
        {
            ask.notify_one();
        }
        async move {
            let request = request.map(|body| RequestBody::new(body.map_err(Into::into)));
            Ok::<_, Infallible>(front.serve(request, caller).await)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(15));
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        let connection = builder.serve_connection(TokioIo::new(Coalesced::new(stream)), service);
        return until_stopped(connection, &mut shutdown, &go_away).await;
    }
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    until_stopped(connection, &mut shutdown, &go_away).await
}

/// Serves a connection; once the server is to stop, or the client to go away, it takes no new requests.
async fn until_stopped<C>(
    connection: C,
    shutdown: &mut tokio::sync::watch::Receiver<bool>,
    go_away: &tokio::sync::Notify,
) -> Result<(), BoxError>
where
    C: GracefulConnection<Error = BoxError>,
{
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        _ = shutdown.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
        () = go_away.notified() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// Asks for a client certificate without requiring one, and takes any whose key the client holds: whom it names, and whether
/// that is believed, is for the authenticators to say.
#[derive(Debug)]
struct AnyClient(Arc<rustls::crypto::CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
