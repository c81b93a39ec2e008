//! Brings images to the node (upstream: `kubelet/images/image_manager.go`): pull policies, credentials, back-off, and the events about it.

use crate::backoff::Backoffs;
use crate::config::Config;
use crate::cri::{Runtime, v1};
use crate::events::Events;
use crate::pod::PodExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

const BACKOFF_INITIAL: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Failures whose texts are remembered for the message of the back-off.
const FAILURES_MAX: usize = 1024;
/// Upstream: `RepositoryNameTotalLengthMax`.
const NAME_BYTES_MAX: usize = 255;

/// Why a container cannot start: the reason and message of its waiting state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartError {
    pub reason: &'static str,
    pub message: String,
}

impl StartError {
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        StartError { reason, message: message.into() }
    }
}

/// An image that a pod needs.
pub struct Wish<'a> {
    pub pod: &'a Pod,
    /// The path of the container whose image it is.
    pub field: Option<&'a str>,
    /// As it stands in the spec: messages show it so.
    pub requested: &'a str,
    pub policy: &'a str,
    pub sandbox: &'a v1::PodSandboxConfig,
    /// The pod's pull secrets, as far as they are there.
    pub secrets: &'a [Arc<Secret>],
}

pub struct Images {
    runtime: Arc<dyn Runtime>,
    events: Events,
    backoff: Backoffs,
    /// The last failure to pull an image for a pod, told again while backing off.
    failures: Mutex<HashMap<String, String>>,
    /// One permit a pull.
    pulls: Semaphore,
    /// Pulls that begin are spaced by this (upstream: `registryPullQPS` and `registryBurst`).
    bucket: Mutex<Bucket>,
}

struct Bucket {
    tokens: f64,
    burst: f64,
    per_second: f64,
    filled: Instant,
}

impl Bucket {
    fn take(&mut self) -> bool {
        if self.per_second <= 0.0 {
            return true;
        }
        let now = Instant::now();
        self.tokens = (self.tokens + now.duration_since(self.filled).as_secs_f64() * self.per_second).min(self.burst);
        self.filled = now;
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

impl Images {
    pub fn new(config: &Config, runtime: Arc<dyn Runtime>, events: Events) -> Self {
        let settings = &config.settings;
        let parallel = if settings.serialize_image_pulls {
            1
        } else {
            settings.max_parallel_image_pulls.map_or(64, |n| n.max(1) as usize)
        };
        let burst = f64::from(settings.registry_burst.max(1));
        Images {
            runtime,
            events,
            backoff: Backoffs::new(BACKOFF_INITIAL, BACKOFF_MAX),
            failures: Mutex::new(HashMap::new()),
            pulls: Semaphore::new(parallel),
            bucket: Mutex::new(Bucket {
                tokens: burst,
                burst,
                per_second: f64::from(settings.registry_pull_qps),
                filled: Instant::now(),
            }),
        }
    }

    /// The reference by which the runtime knows an image, once it is there. `field` is the container's path, if it is a container's image.
    pub async fn ensure(&self, wish: &Wish<'_>) -> Result<String, StartError> {
        let Wish { pod, requested, policy, .. } = *wish;
        let event = |kind: &str, reason: &str, message: String| self.events.pod(pod, wish.field, kind, reason, message);
        if let Some(error) = malformed(requested) {
            let message = format!(
                "Failed to apply default image tag {requested:?}: couldn't parse image name {requested:?}: {error}"
            );
            event("Warning", "InspectFailed", message.clone());
            return Err(StartError::new("InvalidImageName", message));
        }
        let image = &with_default_tag(requested);
        let present = self.runtime.image_status(image).await.map_err(|e| {
            let message = format!("Failed to inspect image {image:?}: {e}");
            event("Warning", "InspectFailed", message.clone());
            StartError::new("ImageInspectError", message)
        })?;
        if let Some(found) = present.filter(|_| policy != "Always") {
            event(
                "Normal",
                "Pulled",
                format!("Container image {requested:?} already present on machine and can be accessed by the pod"),
            );
            return Ok(found.id);
        }
        if policy == "Never" {
            let message = format!("Container image {requested:?} is not present with pull policy of Never");
            event("Warning", "ErrImageNeverPull", message.clone());
            return Err(StartError::new("ErrImageNeverPull", message));
        }
        let key = format!("{}_{requested}", pod.uid());
        if self.backoff.remaining_since_update(&key, Timestamp::now()).is_some() {
            let message = format!("Back-off pulling image {requested:?}");
            event("Normal", "BackOff", message.clone());
            let cause = self.failures.lock().get(&key).cloned();
            let message = match cause {
                Some(cause) => format!("{message}: {cause}"),
                None => message,
            };
            return Err(StartError::new("ImagePullBackOff", message));
        }
        let waiting = Instant::now();
        let _permit = self.pulls.acquire().await;
        if !self.bucket.lock().take() {
            return Err(self.failed(&key, requested, "pull QPS exceeded", &event));
        }
        event("Normal", "Pulling", format!("Pulling image {requested:?}"));
        let started = Instant::now();
        match self.pull(image, wish).await {
            Ok(reference) => {
                let size = self.runtime.image_status(image).await.ok().flatten().map_or(0, |i| i.size);
                let printed =
                    |d: Duration| crate::config::GoDuration(Duration::from_millis(d.as_millis() as u64)).to_string();
                event(
                    "Normal",
                    "Pulled",
                    format!(
                        "Successfully pulled image {requested:?} in {} ({} including waiting). Image size: {size} bytes.",
                        printed(started.elapsed()),
                        printed(waiting.elapsed())
                    ),
                );
                self.failures.lock().remove(&key);
                Ok(reference)
            }
            Err(message) => Err(self.failed(&key, requested, &message, &event)),
        }
    }

    fn failed(&self, key: &str, image: &str, message: &str, event: &dyn Fn(&str, &str, String)) -> StartError {
        event("Warning", "Failed", format!("Failed to pull image {image:?}: {message}"));
        let now = Timestamp::now();
        self.backoff.next(key, now, now);
        let mut failures = self.failures.lock();
        if failures.len() >= FAILURES_MAX {
            failures.clear();
        }
        failures.insert(key.to_string(), format!("ErrImagePull: {message}"));
        StartError::new("ErrImagePull", message)
    }

    /// Tries the pod's credentials one after the other, or none if there are none.
    async fn pull(&self, image: &str, wish: &Wish<'_>) -> Result<String, String> {
        let sandbox = wish.sandbox;
        let credentials: Vec<_> = wish.secrets.iter().flat_map(|secret| credentials_in(secret, image)).collect();
        if credentials.is_empty() {
            return self.runtime.pull_image(image, None, sandbox.clone()).await.map_err(|e| e.to_string());
        }
        let mut errors = Vec::new();
        for auth in credentials {
            match self.runtime.pull_image(image, Some(auth), sandbox.clone()).await {
                Ok(reference) => return Ok(reference),
                Err(e) => errors.push(e.to_string()),
            }
        }
        errors.dedup();
        Err(if errors.len() == 1 { errors.remove(0) } else { format!("[{}]", errors.join(", ")) })
    }

    pub fn collect_garbage(&self) {
        self.backoff.collect_garbage(Timestamp::now());
    }
}

/// An image without a tag or digest means `latest` (upstream: `applyDefaultImageTag`).
pub fn with_default_tag(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains(':') || name.contains('@') || image.is_empty() {
        image.to_string()
    } else {
        format!("{image}:latest")
    }
}

/// What is wrong with an image's name (upstream: `distribution/reference: ParseNormalizedNamed`).
fn malformed(image: &str) -> Option<String> {
    static WHOLE: LazyLock<regex::Regex> = LazyLock::new(|| {
        let part = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*";
        let label = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])";
        let host = format!(r"(?:{label}(?:\.{label})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?");
        let text = format!(
            r"^(?:{host}/)?{part}(?:/{part})*(?::[\w][\w.-]{{0,127}})?(?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{{32,}})?$"
        );
        regex::Regex::new(&text).expect("the expression is a constant")
    });
    if image.len() == 64 && image.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Some(format!("invalid repository name ({image}), cannot specify 64-byte hexadecimal strings"));
    }
    let (domain, rest) = split_domain(image);
    let path = rest.split(':').next().unwrap_or_default();
    if path.to_lowercase() != path {
        return Some(format!("invalid reference format: repository name ({path}) must be lowercase"));
    }
    let path = path.split('@').next().unwrap_or_default();
    if !WHOLE.is_match(&format!("{domain}/{rest}")) {
        return Some("invalid reference format".into());
    }
    (path.len() > NAME_BYTES_MAX).then(|| format!("repository name must not be more than {NAME_BYTES_MAX} characters"))
}

/// The registry's host and the rest. A first part that cannot be a host belongs to the name, which is then Docker Hub's.
fn split_domain(image: &str) -> (&str, String) {
    const HUB: &str = "docker.io";
    let (domain, rest) = match image.split_once('/') {
        None => return (HUB, format!("library/{image}")),
        Some(("index.docker.io", rest)) => (HUB, rest),
        Some((host, rest)) if host == "localhost" || host.contains(['.', ':']) || host.to_lowercase() != host => {
            (host, rest)
        }
        Some(_) => (HUB, image),
    };
    if domain == HUB && !rest.contains('/') { (domain, format!("library/{rest}")) } else { (domain, rest.into()) }
}

/// The registry an image comes from; images without one are Docker Hub's.
fn registry_and_path(image: &str) -> (String, String) {
    match image.split_once('/') {
        Some((host, path)) if host.contains('.') || host.contains(':') || host == "localhost" => {
            (host.to_string(), path.to_string())
        }
        _ => ("index.docker.io".to_string(), image.to_string()),
    }
}

/// Credentials of a pull secret that fit an image, the most specific ones first.
fn credentials_in(secret: &Secret, image: &str) -> Vec<v1::AuthConfig> {
    use base64::Engine;
    let data = secret.data.as_ref();
    let parsed: Option<serde_json::Value> = if let Some(bytes) = data.and_then(|d| d.get(".dockerconfigjson")) {
        serde_json::from_slice(&bytes.0).ok().map(|v: serde_json::Value| v["auths"].clone())
    } else {
        data.and_then(|d| d.get(".dockercfg")).and_then(|bytes| serde_json::from_slice(&bytes.0).ok())
    };
    let Some(serde_json::Value::Object(entries)) = parsed else { return Vec::new() };
    let (host, path) = registry_and_path(image);
    let mut fitting: Vec<(usize, v1::AuthConfig)> = Vec::new();
    for (server, entry) in &entries {
        let bare = server.trim_start_matches("https://").trim_start_matches("http://");
        let bare = bare.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2").trim_end_matches('/');
        let (server_host, server_path) = bare.split_once('/').unwrap_or((bare, ""));
        let docker_hub = |h: &str| matches!(h, "docker.io" | "index.docker.io" | "registry-1.docker.io");
        let same_host = host_matches(server_host, &host) || docker_hub(server_host) && docker_hub(&host);
        if !same_host || !path.starts_with(server_path) {
            continue;
        }
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_string();
        let (mut username, mut password) = (text("username"), text("password"));
        if let Ok(decoded) = base64::engine::general_purpose::STANDARD.decode(text("auth"))
            && let Ok(decoded) = String::from_utf8(decoded)
            && let Some((user, pass)) = decoded.split_once(':')
        {
            (username, password) = (user.to_string(), pass.trim_end_matches('\0').to_string());
        }
        let auth = v1::AuthConfig {
            username,
            password,
            identity_token: text("identitytoken"),
            registry_token: text("registrytoken"),
            ..Default::default()
        };
        fitting.push((server.len(), auth));
    }
    fitting.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    fitting.into_iter().map(|(_, auth)| auth).collect()
}

/// `*` stands for one label of the host name.
fn host_matches(pattern: &str, host: &str) -> bool {
    let (pattern, host): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), host.split('.').collect());
    pattern.len() == host.len() && pattern.iter().zip(&host).all(|(p, h)| *p == "*" || p == h)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_defaulted() {
        for (image, full) in [
            ("busybox", "busybox:latest"),
            ("h:5000/a", "h:5000/a:latest"),
            ("a:1", "a:1"),
            ("a@sha256:x", "a@sha256:x"),
        ] {
            assert_eq!(with_default_tag(image), full);
        }
    }

    #[test]
    fn names_are_checked() {
        for good in [
            "busybox:latest",
            "h.example.com:5000/a/b_c:1.0-x",
            "localhost/a:1",
            &format!("a@sha256:{}", "0".repeat(64)),
        ] {
            assert_eq!(malformed(good), None, "{good}");
        }
        let lowercase = |name: &str| format!("invalid reference format: repository name ({name}) must be lowercase");
        assert_eq!(malformed("foo/Bar:1").unwrap(), lowercase("foo/Bar"));
        assert_eq!(malformed("Bar").unwrap(), lowercase("library/Bar"));
        assert_eq!(malformed("Registry/UPPER:1").unwrap(), lowercase("UPPER"));
        assert_eq!(malformed("a b").unwrap(), "invalid reference format");
        assert!(malformed(&"a".repeat(64)).unwrap().ends_with("cannot specify 64-byte hexadecimal strings"));
        assert_eq!(
            malformed(&format!("h.io/{}", "a/".repeat(130) + "a")).unwrap(),
            "repository name must not be more than 255 characters"
        );
    }

    #[test]
    fn pull_secrets_fit_by_registry() {
        let config = serde_json::json!({"auths": {"https://r.example.com/team": {"username": "t", "password": "1"},
            "*.example.com": {"auth": "dTpw"}, "other.io": {"username": "x"}}});
        let secret: k8s_openapi::api::core::v1::Secret = k8s_openapi::api::core::v1::Secret {
            data: Some(
                [(".dockerconfigjson".to_string(), k8s_openapi::ByteString(config.to_string().into_bytes()))].into(),
            ),
            ..Default::default()
        };
        let names: Vec<String> =
            credentials_in(&secret, "r.example.com/team/app:1").into_iter().map(|a| a.username).collect();
        assert_eq!(names, ["t", "u"]);
        assert_eq!(credentials_in(&secret, "busybox").len(), 0);
    }
}
