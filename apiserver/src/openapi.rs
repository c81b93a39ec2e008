//! `/openapi/v2` and `/openapi/v3` (upstream: `kube-openapi/pkg/handler` and `handler3`).

use crate::discovery;
use crate::front::{Front, Incoming};
use crate::negotiate::accept_header;
use crate::resources::Index;
use crate::respond::{Answer, Body, answer, page_not_found};
use crate::version::GIT_VERSION;
use bytes::Bytes;
use coxswain_api::catalogue::Version;
use coxswain_api::openapi::{self, Custom, Dialect, Served, Source, custom_definitions};
use http::header::{CACHE_CONTROL, ETAG, EXPIRES, HeaderValue, IF_NONE_MATCH, LOCATION, VARY};
use http::{Method, StatusCode};
use std::sync::Arc;

const JSON: &str = "application/json";

/// Serves one of the documents.
pub fn serve(front: &Front, incoming: &Incoming, path: &str) -> Answer {
    let source = source(&front.resources.index());
    if !matches!(incoming.method, Method::GET | Method::HEAD) {
        let known = match path.strip_prefix("/openapi/v3/") {
            Some(part) => source.v3_hash(part).is_some(),
            None => matches!(path, "/openapi/v2" | "/openapi/v3"),
        };
        if known {
            return empty(StatusCode::METHOD_NOT_ALLOWED);
        }
    }
    match path {
        "/openapi/v2" => {
            let etag = source.v2_hash();
            with_etag(incoming, &etag, Dialect::V2, || Some(source.v2()))
        }
        "/openapi/v3" => {
            // Upstream names no type, and Go takes JSON for text.
            let index = serde_json::to_vec(&source.v3_index()).expect("a tree has only text keys");
            answer(StatusCode::OK, "text/plain; charset=utf-8", index)
        }
        _ => {
            let Some(part) = path.strip_prefix("/openapi/v3/") else { return page_not_found() };
            let Some(hash) = source.v3_hash(part) else { return empty(StatusCode::NOT_FOUND) };
            match incoming.query.first("hash") {
                Some(asked) if !asked.is_empty() && asked != hash => {
                    let mut response = empty(StatusCode::MOVED_PERMANENTLY);
                    if let Ok(location) = HeaderValue::from_str(&format!("{path}?hash={hash}")) {
                        response.headers_mut().insert(LOCATION, location);
                    }
                    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(JSON));
                    response
                }
                asked => {
                    let mut response = with_etag(incoming, &hash, Dialect::V3, || source.v3(part));
                    // Under its hash a document never changes.
                    if asked.is_some_and(|a| !a.is_empty()) {
                        let headers = response.headers_mut();
                        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
                        let year = std::time::SystemTime::now() + std::time::Duration::from_secs(365 * 24 * 3600);
                        if let Ok(expires) = HeaderValue::from_str(&http_date(year)) {
                            headers.insert(EXPIRES, expires);
                        }
                    }
                    response
                }
            }
        }
    }
}

/// What the documents are made from: the versions that are served, with their resources as they are now.
fn source(index: &Index) -> Source {
    let versions = discovery::versions(index)
        .into_iter()
        .map(|gv| {
            let resources = index.versions.get(&(gv.group.clone(), gv.version.clone()));
            let custom: Vec<_> = resources.into_iter().flat_map(|r| r.values()).filter(|s| s.custom).cloned().collect();
            let mut fingerprint = Vec::new();
            for served in &custom {
                fingerprint.extend_from_slice(served.ty.kind.as_bytes());
                fingerprint.push(0);
                fingerprint.extend(served.strategy.open_api().into_iter().flat_map(|schema| schema.hash));
            }
            let custom = Custom::new(fingerprint, move || {
                let definitions = custom.iter().flat_map(|served| {
                    let schema = served.strategy.open_api().map(|schema| schema.tree());
                    custom_definitions(&served.ty, schema.as_ref())
                });
                definitions.collect()
            });
            let resources = resources.into_iter().flat_map(|r| r.values()).map(|s| s.ty.clone()).collect();
            let version = Version { group_version: gv, served_by_default: true, resources };
            Served { version: Arc::new(version), custom }
        })
        .collect();
    Source { versions, server_version: GIT_VERSION.into() }
}

/// A document in JSON or protobuf, whichever the client names first, or word that the client has it already.
fn with_etag(incoming: &Incoming, hash: &str, dialect: Dialect, make: impl FnOnce() -> Option<Vec<u8>>) -> Answer {
    let accept = accept_header(&incoming.headers);
    let protobuf = dialect.protobuf_media_type();
    let choice = accept.split(',').find_map(|clause| {
        match clause.split(';').next().unwrap_or_default().trim() {
            "" | JSON | "application/*" | "*/*" => Some(JSON),
            // Clients write the version after an `@`.
            media if media.replace('@', ".") == protobuf => Some(protobuf),
            _ => None,
        }
    });
    let Some(media) = choice else { return empty(StatusCode::NOT_ACCEPTABLE) };
    let make = || {
        let json = make()?;
        Some(Bytes::from(if media == JSON { json } else { openapi::protobuf(&json, dialect) }))
    };
    let etag = format!("\"{hash}\"");
    let known = incoming.headers.get(IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == etag.as_bytes());
    let mut response = if known {
        empty(StatusCode::NOT_MODIFIED)
    } else {
        match make() {
            Some(bytes) => answer(StatusCode::OK, media, bytes),
            None => return empty(StatusCode::NOT_FOUND),
        }
    };
    let headers = response.headers_mut();
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(ETAG, etag);
    }
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    response
}

fn empty(code: StatusCode) -> Answer {
    let mut response = Answer::new(Body::Empty);
    *response.status_mut() = code;
    response
}

/// A time as HTTP headers have it.
fn http_date(time: std::time::SystemTime) -> String {
    let timestamp = jiff::Timestamp::try_from(time).unwrap_or_default();
    timestamp.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}
