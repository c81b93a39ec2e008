//! Brings images to the node (upstream: `kubelet/images/image_manager.go`): pull policies, credentials, back-off, and the events about it.

use crate::backoff::Backoffs;
use crate::config::Config;
use crate::cri::{Runtime, v1};
use crate::environment::Lookup;
use crate::events::Events;
use crate::pod::{ContainerRef, PodExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

const BACKOFF_INITIAL: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Failures whose texts are remembered for the message of the back-off.
const FAILURES_MAX: usize = 1024;

/// Why a container cannot start: the reason and message of its waiting state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartError {
    pub reason: &'static str,
    pub message: String,
    /// When it makes sense to try again, if that is known.
    pub retry_after: Option<Duration>,
}

impl StartError {
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        StartError { reason, message: message.into(), retry_after: None }
    }
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

    /// The image's reference in the runtime, once it is there.
    pub async fn ensure(
        &self,
        pod: &Pod,
        container: ContainerRef<'_>,
        sandbox: &v1::PodSandboxConfig,
        lookup: &dyn Lookup,
    ) -> Result<String, StartError> {
        let image = with_default_tag(container.container.image.as_deref().unwrap_or_default());
        if let Some(error) = malformed(&image) {
            let message =
                format!("Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {error}");
            self.events.pod(pod, Some(&container.field_path()), "Warning", "InspectFailed", message.clone());
            return Err(StartError::new("InvalidImageName", message));
        }
        let policy = container.container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
        self.ensure_image(pod, Some(container), &image, policy, sandbox, lookup).await
    }

    pub async fn ensure_image(
        &self,
        pod: &Pod,
        container: Option<ContainerRef<'_>>,
        image: &str,
        policy: &str,
        sandbox: &v1::PodSandboxConfig,
        lookup: &dyn Lookup,
    ) -> Result<String, StartError> {
        let field = container.map(|c| c.field_path());
        let event =
            |kind: &str, reason: &str, message: String| self.events.pod(pod, field.as_deref(), kind, reason, message);
        let present = self.runtime.image_status(image).await.map_err(|e| {
            let message = format!("Failed to inspect image {image:?}: {e}");
            event("Warning", "InspectFailed", message.clone());
            StartError::new("ImageInspectError", message)
        })?;
        if let Some(found) = present.filter(|_| policy != "Always") {
            event(
                "Normal",
                "Pulled",
                format!("Container image {image:?} already present on machine and can be accessed by the pod"),
            );
            return Ok(found.id);
        }
        if policy == "Never" {
            let message = format!("Container image {image:?} is not present with pull policy of Never");
            event("Warning", "ErrImageNeverPull", message.clone());
            return Err(StartError::new("ErrImageNeverPull", message));
        }
        let key = format!("{}_{image}", pod.uid());
        if let Some((remaining, _)) = self.backoff.remaining_since_update(&key, Timestamp::now()) {
            let message = format!("Back-off pulling image {image:?}");
            event("Normal", "BackOff", message.clone());
            let cause = self.failures.lock().get(&key).cloned();
            let message = match cause {
                Some(cause) => format!("{message}: {cause}"),
                None => message,
            };
            return Err(StartError { reason: "ImagePullBackOff", message, retry_after: Some(remaining) });
        }
        let waiting = Instant::now();
        let _permit = self.pulls.acquire().await;
        if !self.bucket.lock().take() {
            return Err(self.failed(&key, image, "pull QPS exceeded", &event));
        }
        event("Normal", "Pulling", format!("Pulling image {image:?}"));
        let started = Instant::now();
        match self.pull(pod, image, sandbox, lookup).await {
            Ok(reference) => {
                let size = self.runtime.image_status(image).await.ok().flatten().map_or(0, |i| i.size);
                let printed =
                    |d: Duration| crate::config::GoDuration(Duration::from_millis(d.as_millis() as u64)).to_string();
                event(
                    "Normal",
                    "Pulled",
                    format!(
                        "Successfully pulled image {image:?} in {} ({} including waiting). Image size: {size} bytes.",
                        printed(started.elapsed()),
                        printed(waiting.elapsed())
                    ),
                );
                self.failures.lock().remove(&key);
                Ok(reference)
            }
            Err(message) => Err(self.failed(&key, image, &message, &event)),
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
        let retry_after = self.backoff.remaining_since_update(key, now).map(|(left, _)| left);
        StartError { reason: "ErrImagePull", message: message.to_string(), retry_after }
    }

    /// Tries the pod's credentials one after the other, or none if there are none.
    async fn pull(
        &self,
        pod: &Pod,
        image: &str,
        sandbox: &v1::PodSandboxConfig,
        lookup: &dyn Lookup,
    ) -> Result<String, String> {
        let mut credentials = Vec::new();
        for reference in pod.spec().image_pull_secrets.iter().flatten() {
            if let Ok(Some(secret)) = lookup.secret(pod.namespace(), &reference.name).await {
                credentials.extend(credentials_in(&secret, image));
            }
        }
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

/// What is wrong with an image's name (upstream: `distribution/reference`).
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
    if WHOLE.is_match(image) {
        return None;
    }
    if WHOLE.is_match(&image.to_lowercase()) {
        let name = image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(image, |(name, _)| name);
        return Some(format!("invalid reference format: repository name ({name}) must be lowercase"));
    }
    Some("invalid reference format".into())
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
fn credentials_in(secret: &k8s_openapi::api::core::v1::Secret, image: &str) -> Vec<v1::AuthConfig> {
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
        assert_eq!(
            malformed("foo/Bar:1").unwrap(),
            "invalid reference format: repository name (foo/Bar) must be lowercase"
        );
        assert_eq!(malformed("a b").unwrap(), "invalid reference format");
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
