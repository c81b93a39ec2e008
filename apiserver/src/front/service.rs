//! The front as a tower service, for clients within this process.

use super::{BoxError, Caller, Front, RequestBody};
use crate::respond::Body;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Calls the server under one identity: no socket, no TLS, but the whole chain.
#[derive(Clone)]
pub struct InProcess {
    front: Arc<Front>,
    caller: Caller,
}

impl InProcess {
    pub fn new(front: Arc<Front>, caller: Caller) -> Self {
        Self { front, caller }
    }
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (front, caller) = (self.front.clone(), self.caller.clone());
        let request = request.map(|body| RequestBody::new(body.map_err(Into::into)));
        Box::pin(async move { Ok(front.serve(request, caller).await) })
    }
}
