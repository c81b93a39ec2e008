//! Requests for no resource: discovery, version, health, metrics, OpenAPI, keys (upstream: `genericapiserver`'s routes).

use super::{Flow, Front, Incoming};
use crate::discovery::{self, Aggregated};
use crate::negotiate::{self, Media};
use crate::respond::{self, Answer, Body, answer, json_line, page_not_found, pretty_line, refusal};
use coxswain_api::{Status, Value, json};
use http::header::{ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{Method, StatusCode};
use std::sync::Arc;

impl Front {
    pub(super) async fn document(self: Arc<Self>, incoming: Incoming) -> Answer {
        let path = incoming.info().path.clone();
        let query = &incoming.query;
        // A doubled slash names nothing, but one at the end is as none.
        if path.starts_with("//") {
            return page_not_found();
        }
        let trimmed = path.trim_start_matches('/').strip_suffix('/').unwrap_or(path.trim_start_matches('/'));
        let parts: Vec<&str> = trimmed.split('/').collect();
        if matches!(parts[0], "apis" | "openapi") {
            self.resources.catch_up().await;
        }
        match parts.as_slice() {
            ["" | "index.html"] => self.reads(&incoming, || json!({"paths": self.paths()})),
            ["healthz" | "livez" | "readyz"] => self.health.serve(parts[0], "", query).await,
            [endpoint @ ("healthz" | "livez" | "readyz"), ..] => {
                let one = trimmed.strip_prefix(endpoint).unwrap_or_default().trim_start_matches('/');
                self.health.serve(endpoint, one, query).await
            }
            ["debug", ..] => Box::pin(self.debug(incoming)).await,
            ["flagz"] => self.flagz(&incoming.headers),
            ["statusz"] => self.statusz(&incoming.headers),
            ["version"] => self.reads(&incoming, crate::version::info),
            ["metrics", "slis"] => {
                let content_type = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
                answer(StatusCode::OK, content_type, self.health.indicators().await)
            }
            ["metrics"] => {
                let content_type = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
                let mut text = self.metrics.render(&self.resources);
                if let Flow::Fair(flow) = &self.flow {
                    flow.render(&mut text);
                }
                text.push_str(&self.health.storage_metrics(&self.resources).await);
                answer(StatusCode::OK, content_type, text)
            }
            ["api"] if incoming.method != Method::GET => not_allowed(&incoming),
            ["api"] => self.discover(&incoming, true, || Some(discovery::api_versions(&self.public_address))),
            ["apis"] => self.discover(&incoming, false, || Some(discovery::group_list(&self.resources))),
            ["api", version] => match discovery::resource_list(&self.resources, "", version) {
                Some(tree) => self.resource_list(&incoming, &tree),
                None => refusal(&Status::page_not_found(), incoming.accepted_or_json()),
            },
            ["apis", group] => match discovery::group(&self.resources, group) {
                Some(tree) => self.any_method(&incoming, &tree),
                None => page_not_found(),
            },
            ["apis", group, version] => match discovery::resource_list(&self.resources, group, version) {
                Some(tree) => self.resource_list(&incoming, &tree),
                None if self.resources.index().has_group(group) => {
                    refusal(&Status::page_not_found(), incoming.accepted_or_json())
                }
                None => page_not_found(),
            },
            ["openapi", ..] => crate::openapi::serve(&self, &incoming, &path),
            [".well-known", "openid-configuration"] => match self.issuer().and_then(|s| s.discovery()) {
                Some(tree) => self.key_document(&incoming, "application/json", &tree),
                None => page_not_found(),
            },
            ["openid", "v1", "jwks"] => match self.issuer() {
                Some(issuer) => self.key_document(&incoming, "application/jwk-set+json", &issuer.jwks()),
                None => page_not_found(),
            },
            ["api" | "apis", ..] => refusal(&Status::page_not_found(), incoming.accepted_or_json()),
            _ => page_not_found(),
        }
    }

    fn issuer(&self) -> Option<&crate::authentication::service_account::ServiceAccounts> {
        self.authentication.service_accounts.as_deref()
    }

    pub(super) fn paths(&self) -> Vec<String> {
        let mut paths = discovery::paths(&self.resources);
        paths.extend(self.health.paths());
        let others = [
            "/flagz",
            "/metrics",
            "/metrics/slis",
            "/openapi/v2",
            "/openapi/v3",
            "/openapi/v3/",
            "/statusz",
            "/version",
        ];
        paths.extend(others.map(String::from));
        if self.issuer().is_some() {
            paths.extend(["/.well-known/openid-configuration", "/openid/v1/jwks"].map(String::from));
        }
        paths.sort();
        paths.dedup();
        paths
    }

    /// A document that can only be read.
    fn reads(&self, incoming: &Incoming, make: impl FnOnce() -> Value) -> Answer {
        if !matches!(incoming.method, Method::GET | Method::HEAD) {
            return not_allowed(incoming);
        }
        // These documents have JSON alone, whatever is accepted.
        answer(StatusCode::OK, Media::Json.content_type(), pretty_line(&make()))
    }

    /// The resources of a version, which can only be read; not even their headers alone.
    fn resource_list(&self, incoming: &Incoming, tree: &Value) -> Answer {
        if incoming.method == Method::GET { self.any_method(incoming, tree) } else { not_allowed(incoming) }
    }

    /// The documents of groups, which upstream serves to any method.
    fn any_method(&self, incoming: &Incoming, tree: &Value) -> Answer {
        let accepted = match negotiate::accept(&incoming.headers, &incoming.query, false) {
            Ok(accepted) => accepted,
            Err(status) => return refusal(&status, negotiate::Accepted::JSON),
        };
        match crate::convert::any_document(tree, accepted) {
            Ok(bytes) => answer(StatusCode::OK, accepted.media.content_type(), bytes),
            Err(status) => refusal(&status, negotiate::Accepted::JSON),
        }
    }

    /// `/api` and `/apis`, which have an aggregated form as well.
    fn discover(&self, incoming: &Incoming, core: bool, plain: impl FnOnce() -> Option<Value>) -> Answer {
        let Some(form) = Aggregated::wanted(negotiate::accept_header(&incoming.headers)) else {
            return match plain() {
                Some(tree) => self.any_method(incoming, &tree),
                None => page_not_found(),
            };
        };
        let document = self.discovery.aggregated(&self.resources, core, form);
        let known = incoming.headers.get(IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == document.etag.as_bytes());
        let mut response = if known {
            let mut response = Answer::new(Body::Empty);
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            answer(StatusCode::OK, form.content_type(), document.bytes)
        };
        response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
        if let Ok(etag) = HeaderValue::from_str(&document.etag) {
            response.headers_mut().insert(ETAG, etag);
        }
        response
    }

    /// The documents of the token issuer, which may be kept by clients for a while.
    fn key_document(&self, incoming: &Incoming, content_type: &'static str, tree: &Value) -> Answer {
        if !matches!(incoming.method, Method::GET | Method::HEAD) {
            return not_allowed(incoming);
        }
        let accept = negotiate::accept_header(&incoming.headers);
        let accepts = accept.is_empty()
            || accept.split(',').any(|c| {
                let media = c.split(';').next().unwrap_or_default().trim();
                media == content_type || media == "*/*" || media == "application/*"
            });
        if !accepts {
            let message = format!("406: Not Acceptable\n\nAvailable representations: {content_type}");
            let status = Status::new(406, "NotAcceptable", message).with_details(Default::default());
            return refusal(&status, negotiate::Accepted::JSON);
        }
        let mut response = respond::answer(StatusCode::OK, content_type, json_line(tree));
        response.headers_mut().insert(http::header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
        response
    }
}

fn not_allowed(incoming: &Incoming) -> Answer {
    let message = "the server does not allow this method on the requested resource";
    let status = Status::new(405, "MethodNotAllowed", message).with_details(Default::default());
    refusal(&status, incoming.accepted_or_json())
}
