//! Profiles of this process and the level of its log (upstream: `InstallProfilingHandler` and `InstallDebugFlagsHandler` of
//! `kubelet/server/server.go`). Routing is another than that of other components, and so are the answers where nothing is served.

use super::{Body, body, error, text};
use crate::config::KubeletConfiguration;
use coxswain_profiling::routes::{self, Asked};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

const BODY_BYTES_MAX: usize = 1 << 20;
const PPROF: &str = "/debug/pprof/";
/// What is refused by name where debugging is off, so that people see why.
const DEBUGGING: [&str; 8] =
    ["/run/", "/exec/", "/attach/", "/portForward/", "/containerLogs/", "/runningpods/", PPROF, "/logs/"];

/// The refusal of a path that belongs to debugging, if debugging is off.
pub(super) fn disabled(settings: &KubeletConfiguration, path: &str) -> Option<Response<Body>> {
    let refused = !settings.enable_debugging_handlers && DEBUGGING.iter().any(|prefix| path.starts_with(prefix));
    refused.then(|| error(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled."))
}

/// The answer below `/debug/`; none for paths that are not served.
pub(super) async fn answer(settings: &KubeletConfiguration, request: Request<Incoming>) -> Option<Response<Body>> {
    let (parts, incoming) = request.into_parts();
    let (method, path) = (&parts.method, parts.uri.path());
    let query = parts.uri.query().unwrap_or_default();
    let content = Limited::new(incoming, BODY_BYTES_MAX).collect().await;
    let content = content.map(|content| content.to_bytes()).map_err(|error| error.to_string());
    let asked = Asked { method, path, query, body: content };
    let refused = |why| Some(error(StatusCode::METHOD_NOT_ALLOWED, why));
    let answer = match path {
        "/debug/pprof" => routes::moved(method, PPROF, StatusCode::TEMPORARY_REDIRECT, "Temporary Redirect"),
        "/debug/flags/v" if settings.enable_debug_flags_handler => routes::set_verbosity(asked),
        "/debug/flags/v" => return refused("flags endpoint is disabled."),
        _ if !path.starts_with(PPROF) => return None,
        _ if !settings.enable_profiling_handler => return refused("profiling endpoint is disabled."),
        // Upstream's route takes names only, and so there is no index.
        PPROF => return Some(text(StatusCode::NOT_FOUND, "404: Page Not Found")),
        _ if method != Method::GET => {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
            return Some(response);
        }
        "/debug/pprof/profile" => routes::profile(query).await,
        "/debug/pprof/symbol" => routes::symbol(asked).await,
        "/debug/pprof/cmdline" => routes::cmdline(),
        _ => routes::unknown(),
    };
    Some(answer.map(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_is_refused_by_name() {
        let mut settings = KubeletConfiguration::default();
        assert!(disabled(&settings, "/exec/ns/pod/c").is_none());
        settings.enable_debugging_handlers = false;
        for path in ["/exec/ns/pod/c", "/debug/pprof/profile", "/logs/"] {
            assert_eq!(disabled(&settings, path).map(|refusal| refusal.status().as_u16()), Some(405), "{path}");
        }
        assert!(disabled(&settings, "/pods").is_none() && disabled(&settings, "/debug/flags/v").is_none());
    }
}
