//! Lists and watches one resource for ever, the counterpart of client-go's `Reflector`.
//!
//! It lists in pages at the server's latest state, watches from there with bookmarks, and resumes a watch that ends from
//! the last version it saw. Only when the server no longer has that version does it list again. Failures are retried
//! after a jittered, growing delay.

use std::marker::PhantomData;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use rand::Rng;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::Selection;
use crate::backoff::Backoff;

/// Objects asked for in one page.
const PAGE_SIZE: usize = 500;
/// A watch is asked to last this long, and up to twice this long.
const WATCH_SECONDS_MIN: u64 = 300;
/// Beyond the time it was asked to last, a watch that says nothing is taken for dead after this.
const WATCH_GRACE: Duration = Duration::from_secs(30);
/// A watch event longer than this breaks the watch.
const LINE_BYTES_MAX: usize = 32 << 20;
const RETRY_DELAY: Duration = Duration::from_millis(800);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);

/// What to reflect.
#[derive(Clone, Debug)]
pub struct Target {
    /// The collection, such as `/api/v1/namespaces/default/pods`.
    pub path: String,
    pub selection: Selection,
    /// Whether to ask for `PartialObjectMetadata` instead of objects.
    pub metadata_only: bool,
}

/// What happened to the collection.
pub enum Change<T> {
    /// This is all there is.
    Replaced(Vec<T>),
    Applied(T),
    Deleted(T),
}

/// Reads the version of a list or object whose other fields do not matter.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Listed {
    pub resource_version: String,
    #[serde(rename = "continue")]
    pub continue_token: String,
}

#[derive(Deserialize)]
struct ListPage<T> {
    #[serde(default)]
    metadata: Listed,
    #[serde(default = "Option::default")]
    items: Option<Vec<T>>,
}

#[derive(Deserialize)]
struct WatchLine<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Versioned {
    metadata: Listed,
}

/// Why a watch ended without the server closing it.
enum Ended {
    /// The version to watch from is gone: list again.
    Expired,
    Failed(kube::Error),
}

impl From<kube::Error> for Ended {
    fn from(error: kube::Error) -> Self {
        if crate::errors::is_expired(&error) { Self::Expired } else { Self::Failed(error) }
    }
}

pub struct Reflector<T> {
    client: Client,
    target: Target,
    kind: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Reflector<T> {
    pub fn new(client: Client, target: Target) -> Self {
        Self { client, target, kind: PhantomData }
    }

    /// Reports the content and its changes for ever. A resource that does not exist is asked for again and again.
    pub async fn run(&self, mut report: impl FnMut(Change<T>)) {
        let mut backoff = Backoff::new(RETRY_DELAY, RETRY_DELAY_MAX).with_jitter(1.0);
        loop {
            let mut version = match self.list().await {
                Ok((objects, version)) => {
                    report(Change::Replaced(objects));
                    version
                }
                Err(error) => {
                    tracing::debug!(path = self.target.path, %error, "list failed");
                    tokio::time::sleep(backoff.step()).await;
                    continue;
                }
            };
            loop {
                let started = tokio::time::Instant::now();
                let end = self.watch(&mut version, &mut report).await;
                if started.elapsed() > Duration::from_secs(5) {
                    backoff.reset();
                }
                match end {
                    // A server that closes watches at once is not asked in a tight loop.
                    Ok(()) if started.elapsed() < Duration::from_secs(1) => {
                        tokio::time::sleep(backoff.step()).await;
                    }
                    Ok(()) => {}
                    Err(Ended::Expired) => break,
                    Err(Ended::Failed(error)) => {
                        tracing::debug!(path = self.target.path, %error, "watch failed");
                        tokio::time::sleep(backoff.step()).await;
                    }
                }
            }
        }
    }

    async fn list(&self) -> Result<(Vec<T>, String), kube::Error> {
        let mut objects = Vec::new();
        let mut continue_token = String::new();
        loop {
            let mut query = self.query();
            query.append_pair("limit", &PAGE_SIZE.to_string());
            if !continue_token.is_empty() {
                query.append_pair("continue", &continue_token);
            }
            let accept = if self.target.metadata_only {
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
            } else {
                "application/json"
            };
            let response = self.client.send(self.request(query, accept)?).await?;
            let response = check(response).await?;
            let body = response.into_body().collect_bytes().await?;
            let page: ListPage<T> = serde_json::from_slice(&body).map_err(kube::Error::SerdeError)?;
            objects.extend(page.items.unwrap_or_default());
            if page.metadata.continue_token.is_empty() {
                return Ok((objects, page.metadata.resource_version));
            }
            continue_token = page.metadata.continue_token;
        }
    }

    async fn watch(&self, version: &mut String, report: &mut impl FnMut(Change<T>)) -> Result<(), Ended> {
        let seconds = rand::rng().random_range(WATCH_SECONDS_MIN..WATCH_SECONDS_MIN * 2);
        let mut query = self.query();
        query
            .append_pair("watch", "true")
            .append_pair("allowWatchBookmarks", "true")
            .append_pair("resourceVersion", version)
            .append_pair("timeoutSeconds", &seconds.to_string());
        let accept = if self.target.metadata_only {
            "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
        } else {
            "application/json"
        };
        let response = self.client.send(self.request(query, accept)?).await?;
        let mut body = check(response).await?.into_body();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(seconds) + WATCH_GRACE;
        let mut buffer = BytesMut::new();
        let mut searched = 0;
        loop {
            let frame = match tokio::time::timeout_at(deadline, body.frame()).await {
                Err(_) | Ok(None) => return Ok(()),
                Ok(Some(frame)) => frame.map_err(|error| Ended::Failed(kube::Error::Service(Box::new(error))))?,
            };
            let Ok(data) = frame.into_data() else { continue };
            buffer.extend_from_slice(&data);
            while let Some(end) = buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(searched + end);
                buffer.advance(1);
                searched = 0;
                if !line.is_empty() {
                    self.handle(&line, version, report)?;
                }
            }
            searched = buffer.len();
            if searched > LINE_BYTES_MAX {
                return Err(Ended::Failed(kube::Error::LinesCodecMaxLineLengthExceeded));
            }
        }
    }

    fn handle(&self, line: &[u8], version: &mut String, report: &mut impl FnMut(Change<T>)) -> Result<(), Ended> {
        let invalid = |error| Ended::Failed(kube::Error::SerdeError(error));
        let line: WatchLine = serde_json::from_slice(line).map_err(invalid)?;
        let object = line.object.get();
        if line.kind == "ERROR" {
            let status: kube::core::Status = serde_json::from_str(object).map_err(invalid)?;
            return Err(kube::Error::Api(status.boxed()).into());
        }
        let seen: Versioned = serde_json::from_str(object).map_err(invalid)?;
        match line.kind {
            "ADDED" | "MODIFIED" => report(Change::Applied(serde_json::from_str(object).map_err(invalid)?)),
            "DELETED" => report(Change::Deleted(serde_json::from_str(object).map_err(invalid)?)),
            _ => {}
        }
        *version = seen.metadata.resource_version;
        Ok(())
    }

    fn query(&self) -> Query {
        let mut query = Query(String::new());
        if let Some(selector) = &self.target.selection.label_selector {
            query.append_pair("labelSelector", selector);
        }
        if let Some(selector) = &self.target.selection.field_selector {
            query.append_pair("fieldSelector", selector);
        }
        query
    }

    fn request(&self, query: Query, accept: &'static str) -> Result<http::Request<Body>, kube::Error> {
        http::Request::get(format!("{}?{}", self.target.path, query.0))
            .header(http::header::ACCEPT, accept)
            .body(Body::empty())
            .map_err(kube::Error::HttpError)
    }
}

/// Turns an error response into an error.
pub(crate) async fn check(response: http::Response<Body>) -> Result<http::Response<Body>, kube::Error> {
    if response.status().is_success() {
        return Ok(response);
    }
    let code = response.status();
    let body = response.into_body().collect_bytes().await?;
    let status = serde_json::from_slice::<kube::core::Status>(&body).unwrap_or_else(|_| status_of_code(code, &body));
    Err(kube::Error::Api(status.boxed()))
}

/// What an answer without a Status means, as client-go sees it.
fn status_of_code(code: http::StatusCode, body: &[u8]) -> kube::core::Status {
    let (reason, message) = match code.as_u16() {
        401 => ("Unauthorized", "the server has asked for the client to provide credentials"),
        403 => ("Forbidden", "access to the requested resource is forbidden"),
        404 => ("NotFound", "the server could not find the requested resource"),
        405 => ("MethodNotAllowed", "the server does not allow this method on the requested resource"),
        409 => ("Conflict", "the server reported a conflict"),
        410 => ("Gone", "the requested resource is gone"),
        415 => ("UnsupportedMediaType", "the content type of the request is not supported"),
        429 => ("TooManyRequests", "the server has received too many requests and has asked us to try again later"),
        503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
        504 => ("Timeout", "the server was unable to return a response in the time allotted"),
        500.. => ("InternalError", "an error on the server has prevented the request from succeeding"),
        _ => ("Unknown", ""),
    };
    let message = if message.is_empty() { String::from_utf8_lossy(body).into_owned() } else { message.to_owned() };
    kube::core::Status::failure(&message, reason).with_code(code.as_u16())
}

/// An encoded query string.
struct Query(String);

impl Query {
    fn append_pair(&mut self, name: &str, value: &str) -> &mut Self {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(name);
        self.0.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => self.0.push(byte as char),
                _ => self.0.push_str(&format!("%{byte:02X}")),
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn config_map(name: &str, version: &str) -> String {
        format!(r#"{{"metadata":{{"name":"{name}","namespace":"d","resourceVersion":"{version}"}}}}"#)
    }

    /// The first watch delivers a line in two pieces and ends, the second is expired, and the list after it is the last.
    #[tokio::test(start_paused = true)]
    async fn a_reflector_pages_resumes_and_lists_again_when_expired() {
        let step = Arc::new(AtomicUsize::new(0));
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let step = step.fetch_add(1, Ordering::SeqCst);
            async move {
                let query = request.uri().query().unwrap_or_default().to_owned();
                let text = match step {
                    0 => {
                        assert!(query.contains("limit=500"));
                        format!(
                            r#"{{"metadata":{{"resourceVersion":"5","continue":"x/y"}},"items":[{}]}}"#,
                            config_map("a", "1")
                        )
                    }
                    1 => {
                        assert!(query.contains("continue=x%2Fy"));
                        format!(r#"{{"metadata":{{"resourceVersion":"5"}},"items":[{}]}}"#, config_map("b", "2"))
                    }
                    2 => {
                        assert!(query.contains("resourceVersion=5"), "{query}");
                        format!(
                            "{{\"type\":\"MODIFIED\",\"object\":{}}}\n{{\"type\":\"BOOKMARK\",\"object\":{}}}\n",
                            config_map("a", "7"),
                            r#"{"metadata":{"resourceVersion":"9"}}"#
                        )
                    }
                    3 => {
                        assert!(query.contains("resourceVersion=9"), "{query}");
                        r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}"#
                            .to_owned()
                            + "\n"
                    }
                    4 => r#"{"metadata":{"resourceVersion":"12"},"items":null}"#.to_owned(),
                    _ => std::future::pending().await,
                };
                Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Full::new(bytes::Bytes::from(
                    text,
                ))))
            }
        });
        let client = Client::new(service, "default");
        let target =
            Target { path: "/api/v1/configmaps".into(), selection: Selection::default(), metadata_only: false };
        let mut seen = Vec::new();
        let reflector = Reflector::<ConfigMap>::new(client, target);
        let run = reflector.run(|change| {
            seen.push(match change {
                Change::Replaced(objects) => format!("replaced by {}", objects.len()),
                Change::Applied(object) => format!("applied {}", object.metadata.name.unwrap_or_default()),
                Change::Deleted(_) => "deleted".to_owned(),
            });
        });
        let _ = tokio::time::timeout(Duration::from_secs(60), run).await;
        assert_eq!(seen, ["replaced by 2", "applied a", "replaced by 0"]);
    }
}
