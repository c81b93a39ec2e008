//! Calls to a key service over its Unix socket (upstream: `kmsv2/grpc_service.go`).

use super::super::TransformError;
use super::wire::*;
use crate::metrics;
use hyper_util::rt::TokioIo;
use prost::Message;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

/// Why a call failed.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: Option<Code>,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), code: None }
    }

    /// With what was tried put in front.
    pub fn within(self, what: &str) -> Failure {
        Failure { message: format!("{what}{}", self.message), code: self.code }
    }

    pub fn into_error(self) -> TransformError {
        TransformError { message: self.message, code: self.code.map(code_name) }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        let code = status.code();
        Failure {
            message: format!("rpc error: code = {} desc = {}", code_name(code), status.message()),
            code: Some(code),
        }
    }
}

/// As Go writes it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

pub struct Service {
    name: String,
    channel: Channel,
    timeout: Duration,
}

impl Service {
    /// `endpoint` is `unix:///path`, or `unix:///@name` for a socket without a file. Connects when it is needed.
    pub fn new(name: &str, endpoint: &str, timeout: Duration) -> Result<Service, String> {
        let path = endpoint.strip_prefix("unix://").filter(|p| !p.is_empty());
        let path = path.ok_or_else(|| format!("unsupported scheme in endpoint {endpoint:?}"))?;
        let path = match path.strip_prefix("/@") {
            Some(name) => format!("\0{name}"),
            None => path.to_owned(),
        };
        let connect = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect);
        Ok(Service { name: name.to_owned(), channel, timeout })
    }

    pub async fn status(&self) -> Result<StatusResponse, Failure> {
        self.call("/v2.KeyManagementService/Status", StatusRequest {}).await
    }

    pub async fn encrypt(&self, plaintext: &[u8]) -> Result<EncryptResponse, Failure> {
        let request = EncryptRequest { plaintext: plaintext.to_vec().into(), uid: uuid::Uuid::new_v4().to_string() };
        self.call("/v2.KeyManagementService/Encrypt", request).await
    }

    pub async fn decrypt(&self, object: &EncryptedObject) -> Result<bytes::Bytes, Failure> {
        let request = DecryptRequest {
            ciphertext: object.encrypted_dek_source.clone(),
            uid: uuid::Uuid::new_v4().to_string(),
            key_id: object.key_id.clone(),
            annotations: object.annotations.clone(),
        };
        let answer: DecryptResponse = self.call("/v2.KeyManagementService/Decrypt", request).await?;
        Ok(answer.plaintext)
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Failure>
    where
        Q: Message + Clone + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let begin = Instant::now();
        let answer = tokio::time::timeout(self.timeout, self.wait_for(path, request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("context deadline exceeded")));
        let code = answer.as_ref().err().map_or(Code::Ok, Status::code);
        let labels = [self.name.as_str(), path, code_name(code)];
        metrics::KMS_OPERATIONS.observe(&labels, begin.elapsed().as_secs_f64());
        answer.map_err(Failure::from)
    }

    /// Goes on trying as long as there is no connection: the service may be starting.
    async fn wait_for<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + Clone + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        loop {
            let mut grpc = Grpc::new(self.channel.clone());
            grpc.ready().await.map_err(|e| Status::from_error(e.into()))?;
            let codec = ProstCodec::<Q, A>::default();
            match grpc.unary(tonic::Request::new(request.clone()), PathAndQuery::from_static(path), codec).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if crate::etcd::never_sent(&status) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(status) => return Err(status),
            }
        }
    }
}
