//! A key service for tests: it "seals" by writing its key's name in front.

use super::wire::*;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use prost::Message;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tonic::server::UnaryService;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

#[derive(Default)]
struct Shared {
    key_id: Mutex<String>,
    health: Mutex<String>,
    encrypted: AtomicUsize,
    decrypted: AtomicUsize,
}

pub struct KeyService {
    directory: TempDir,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for KeyService {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl KeyService {
    pub fn start() -> KeyService {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("kms.sock")).unwrap();
        let shared = Arc::new(Shared::default());
        *shared.key_id.lock() = "first".into();
        *shared.health.lock() = "ok".into();
        let task = tokio::spawn(serve(listener, shared.clone()));
        KeyService { directory, shared, task }
    }

    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.directory.path().join("kms.sock").display())
    }

    pub fn set_key(&self, key_id: &str) {
        *self.shared.key_id.lock() = key_id.into();
    }

    pub fn set_health(&self, health: &str) {
        *self.shared.health.lock() = health.into();
    }

    /// How often it has sealed and opened.
    pub fn calls(&self) -> (usize, usize) {
        (self.shared.encrypted.load(Ordering::Relaxed), self.shared.decrypted.load(Ordering::Relaxed))
    }
}

async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        let service = hyper::service::service_fn(move |request| {
            let shared = shared.clone();
            async move { Ok::<_, Infallible>(answer(shared, request).await) }
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::spawn(async move { builder.serve_connection(TokioIo::new(stream), service).await });
    }
}

async fn answer(
    shared: Arc<Shared>,
    request: hyper::Request<hyper::body::Incoming>,
) -> hyper::Response<tonic::body::Body> {
    match request.uri().path() {
        "/v2.KeyManagementService/Status" => {
            call(request, move |_: StatusRequest| {
                let (key_id, healthz) = (shared.key_id.lock().clone(), shared.health.lock().clone());
                Ok(StatusResponse { version: "v2".into(), healthz, key_id })
            })
            .await
        }
        "/v2.KeyManagementService/Encrypt" => {
            call(request, move |asked: EncryptRequest| {
                shared.encrypted.fetch_add(1, Ordering::Relaxed);
                let key_id = shared.key_id.lock().clone();
                let ciphertext = [key_id.as_bytes(), b":", &asked.plaintext].concat().into();
                let annotations = [("note.example.com".to_owned(), b"n".to_vec())].into();
                Ok(EncryptResponse { ciphertext, key_id, annotations })
            })
            .await
        }
        _ => {
            call(request, move |asked: DecryptRequest| {
                shared.decrypted.fetch_add(1, Ordering::Relaxed);
                let opened = asked.ciphertext.strip_prefix(format!("{}:", asked.key_id).as_bytes());
                let noted = asked.annotations.get("note.example.com").map(Vec::as_slice) == Some(b"n");
                let plaintext = opened.filter(|_| noted).ok_or_else(|| Status::invalid_argument("not sealed here"))?;
                Ok(DecryptResponse { plaintext: plaintext.to_vec().into() })
            })
            .await
        }
    }
}

struct Handler<F>(F);

impl<Q: Send + 'static, A: Send + 'static, F: FnMut(Q) -> Result<A, Status>> UnaryService<Q> for Handler<F> {
    type Response = A;
    type Future = std::future::Ready<Result<Response<A>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        std::future::ready((self.0)(request.into_inner()).map(Response::new))
    }
}

async fn call<Q, A>(
    request: hyper::Request<hyper::body::Incoming>,
    handle: impl FnMut(Q) -> Result<A, Status>,
) -> hyper::Response<tonic::body::Body>
where
    Q: Message + Default + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<A, Q>::default());
    grpc.unary(Handler(handle), request).await
}
