//! Answers: bodies, statuses, and objects in the form that was negotiated.

use crate::encode::spliced::{Compressed, Spliced};
use crate::negotiate::{Accepted, Media};
use bytes::Bytes;
use coxswain_api::{Status, Value};
use futures::stream::BoxStream;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use http::{Response, StatusCode};
use http_body::{Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};

/// The body of an answer.
#[derive(Default)]
pub enum Body {
    #[default]
    Empty,
    Full(Bytes),
    /// Made while it is sent. Ends the connection where it fails, as nothing can be taken back.
    Stream(BoxStream<'static, std::io::Result<Bytes>>),
    /// A long list, made while it is sent.
    List(Box<Spliced>),
    CompressedList(Box<Compressed>),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        match this {
            Body::Empty => Poll::Ready(None),
            Body::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Body::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Body::Stream(stream) => stream.as_mut().poll_next(cx).map(|next| next.map(|r| r.map(Frame::data))),
            Body::List(list) => Poll::Ready(list.next_piece().map(|piece| Ok(Frame::data(piece)))),
            Body::CompressedList(list) => Poll::Ready(list.next_piece().map(|piece| Ok(Frame::data(piece)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Full(bytes) => bytes.is_empty(),
            Body::Stream(_) | Body::List(_) | Body::CompressedList(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            Body::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Stream(_) | Body::List(_) | Body::CompressedList(_) => SizeHint::default(),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Body::Full(bytes)
    }
}

pub type Answer = Response<Body>;

pub fn code(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// An answer with a body of known type.
pub fn answer(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Body::Full(body.into()));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub fn text(code: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(code, "text/plain; charset=utf-8", body)
}

/// Go's error pages forbid guessing a type from their text.
pub const NO_SNIFF: (HeaderName, HeaderValue) = (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));

/// An error page as Go writes it.
pub fn error_page(code: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = text(code, body);
    answer.headers_mut().insert(NO_SNIFF.0, NO_SNIFF.1);
    answer
}

pub fn no_content() -> Answer {
    let mut answer = Answer::new(Body::Empty);
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

/// Go's answer for a path that no handler takes.
pub fn page_not_found() -> Answer {
    error_page(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// Upstream's answer where a handler refuses, in the negotiated form.
pub fn refusal(status: &Status, accepted: Accepted) -> Answer {
    let tree = serde_json::to_value(status).expect("a status has only text keys");
    let accepted = Accepted { shape: crate::negotiate::Shape::Object, ..accepted };
    let mut response = match crate::convert::any_document(&tree, accepted) {
        Ok(bytes) => answer(code(status.code), accepted.media.content_type(), bytes),
        Err(_) => answer(code(status.code), Media::Json.content_type(), json_line(&tree)),
    };
    let retry = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
    if retry > 0 {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(retry));
    }
    response
}

/// JSON with the newline that upstream's encoder ends with. `kind` and `apiVersion` come first.
pub fn json_line(tree: &Value) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    crate::store::object::write_json(tree, &mut out);
    out.push(b'\n');
    out.into()
}

pub fn pretty_line(tree: &Value) -> Bytes {
    let mut compact = Vec::with_capacity(1024);
    crate::store::object::write_json(tree, &mut compact);
    let mut out = Vec::with_capacity(compact.len() * 2);
    crate::convert::indent(&compact, &mut out);
    out.push(b'\n');
    out.into()
}
