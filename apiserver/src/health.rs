//! `/healthz`, `/livez` and `/readyz` (upstream: `apiserver/pkg/server/healthz`).
//!
//! The names are upstream's, as dashboards and scripts ask for them. Hooks that have work to do here report it; those whose
//! work is part of another design here are done once the caches are filled.

use crate::registry::options::Query;
use crate::respond::{Answer, NO_SNIFF, error_page, page_not_found, text};
use coxswain_storage::Storage;
use coxswain_storage::encryption::Encryption;
use http::StatusCode;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// How long the store may take to answer, unless a flag says otherwise.
const STORAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// What runs after the start, in the order in which it is listed.
const HOOKS: [&str; 31] = [
    "start-apiserver-admission-initializer",
    "generic-apiserver-start-informers",
    "priority-and-fairness-config-consumer",
    "priority-and-fairness-filter",
    "storage-object-count-tracker-hook",
    "start-apiextensions-informers",
    "start-apiextensions-controllers",
    "crd-informer-synced",
    "start-system-namespaces-controller",
    "peer-endpoint-reconciler-controller",
    "start-cluster-authentication-info-controller",
    "start-kube-apiserver-identity-lease-controller",
    "start-kube-apiserver-identity-lease-garbage-collector",
    "storage-readiness",
    "start-legacy-token-tracking-controller",
    "start-service-ip-repair-controllers",
    "rbac/bootstrap-roles",
    "scheduling/bootstrap-system-priority-classes",
    "priority-and-fairness-config-producer",
    "bootstrap-controller",
    "start-kubernetes-service-cidr-controller",
    "start-kube-aggregator-informers",
    "apiservice-status-local-available-controller",
    "apiservice-status-remote-available-controller",
    "apiservice-registration-controller",
    "apiservice-wait-for-first-sync",
    "apiservice-discovery-controller",
    "kube-apiserver-autoregistration",
    AUTOREGISTER,
    "apiservice-openapi-controller",
    "apiservice-openapiv3-controller",
];
/// Listed among the hooks, but not named as one.
const AUTOREGISTER: &str = "autoregister-completion";

/// All key services together.
const KMS: &str = "kms-providers";
/// Only where the configuration of encryption is followed.
const RELOAD: &str = "start-encryption-provider-config-automatic-reload";

pub struct Health {
    storage: Arc<dyn Storage>,
    encryption: Option<Arc<Encryption>>,
    /// For `etcd` and for `etcd-readiness`.
    timeouts: [Duration; 2],
    /// Hooks that have not finished.
    pending: parking_lot::Mutex<HashSet<&'static str>>,
    shutdown: tokio::sync::watch::Receiver<bool>,
}

impl Health {
    /// `pending` are the hooks that will be reported by [`Health::done`].
    pub fn new(
        storage: Arc<dyn Storage>,
        pending: &[&'static str],
        shutdown: tokio::sync::watch::Receiver<bool>,
    ) -> Self {
        let timeouts = [STORAGE_TIMEOUT; 2];
        Self {
            storage,
            encryption: None,
            timeouts,
            pending: parking_lot::Mutex::new(pending.iter().copied().collect()),
            shutdown,
        }
    }

    pub fn with_timeouts(mut self, health: Duration, ready: Duration) -> Self {
        self.timeouts = [health, ready];
        self
    }

    /// Key services have a check of their own, which is no reason to restart the server and so not in `/livez`.
    pub fn with_encryption(mut self, encryption: Option<Arc<Encryption>>) -> Self {
        self.encryption = encryption;
        self
    }

    pub fn done(&self, hook: &str) {
        self.pending.lock().remove(hook);
    }

    /// Every check of an endpoint, with its full name.
    fn checks(&self, endpoint: &str) -> Vec<String> {
        let mut names: Vec<String> = ["ping", "log"].map(String::from).into();
        if endpoint != "readyz" {
            names.push("loopback-serving-certificate".into());
        }
        names.push("etcd".into());
        if endpoint == "readyz" {
            names.push("etcd-readiness".into());
        }
        if endpoint != "livez" && self.encryption.as_ref().is_some_and(|e| e.has_health_check()) {
            names.push(KMS.into());
        }
        if endpoint == "readyz" {
            names.push("informer-sync".into());
        }
        if self.encryption.as_ref().is_some_and(|e| e.reloads()) {
            names.push(format!("poststarthook/{RELOAD}"));
        }
        names.extend(HOOKS.iter().map(|h| if *h == AUTOREGISTER { (*h).into() } else { format!("poststarthook/{h}") }));
        if endpoint == "readyz" {
            names.push("shutdown".into());
        }
        names
    }

    /// What is counted about the store.
    pub async fn storage_metrics(&self, resources: &crate::resources::Resources) -> String {
        crate::store::metrics::render(&*self.storage, resources).await
    }

    /// Whether the store answers.
    pub async fn storage(&self) -> Result<String, String> {
        self.check("etcd").await.map(|()| "ok".into())
    }

    async fn check(&self, name: &str) -> Result<(), String> {
        match name {
            "etcd" | "etcd-readiness" => {
                let timeout = self.timeouts[usize::from(name == "etcd-readiness")];
                let read = tokio::time::timeout(timeout, self.storage.current_revision());
                match read.await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(e)) => Err(format!("error getting data from etcd: {e}")),
                    Err(_) => Err("error getting data from etcd: context deadline exceeded".into()),
                }
            }
            KMS => match &self.encryption {
                Some(encryption) => encryption.check().await,
                None => Ok(()),
            },
            "shutdown" if *self.shutdown.borrow() => Err("process is shutting down".into()),
            _ => match name.strip_prefix("poststarthook/") {
                Some(hook) if self.pending.lock().contains(hook) => Err("not finished".into()),
                _ => Ok(()),
            },
        }
    }

    /// Answers `/ENDPOINT` and `/ENDPOINT/CHECK`.
    pub async fn serve(&self, endpoint: &str, one: &str, query: &Query) -> Answer {
        if !one.is_empty() {
            return self.one(endpoint, one).await;
        }
        let mut answer = self.all(endpoint, query).await;
        answer.headers_mut().insert(NO_SNIFF.0, NO_SNIFF.1);
        answer
    }

    async fn one(&self, endpoint: &str, name: &str) -> Answer {
        if !self.checks(endpoint).iter().any(|n| n == name) {
            return page_not_found();
        }
        match self.check(name).await {
            Ok(()) => text(StatusCode::OK, "ok"),
            Err(why) => error_page(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n")),
        }
    }

    async fn all(&self, endpoint: &str, query: &Query) -> Answer {
        use std::fmt::Write;
        let mut excluded: Vec<&str> = query.all("exclude").into_iter().filter(|e| !e.is_empty()).collect();
        let mut out = String::new();
        let mut failed = Vec::new();
        for name in self.checks(endpoint) {
            let before = excluded.len();
            excluded.retain(|e| *e != name);
            let _ = if excluded.len() < before {
                writeln!(out, "[+]{name} excluded: ok")
            } else if let Err(why) = self.check(&name).await {
                tracing::info!(check = %name, %why, "a health check failed");
                failed.push(name.clone());
                writeln!(out, "[-]{name} failed: reason withheld")
            } else {
                writeln!(out, "[+]{name} ok")
            };
        }
        if !excluded.is_empty() {
            excluded.sort_unstable();
            excluded.dedup();
            let quoted: Vec<String> = excluded.iter().map(|e| coxswain_api::field::go_quote(e)).collect();
            let _ = writeln!(out, "warn: some health checks cannot be excluded: no matches for {}", quoted.join(", "));
        }
        if !failed.is_empty() {
            return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{out}{endpoint} check failed\n"));
        }
        if query.first("verbose").is_none() {
            return text(StatusCode::OK, "ok");
        }
        text(StatusCode::OK, format!("{out}{endpoint} check passed\n"))
    }

    /// The state of every check as metrics (upstream: `component-base/metrics/prometheus/slis`).
    pub async fn indicators(&self) -> String {
        use std::fmt::Write;
        let name = "kubernetes_healthcheck";
        let mut out = format!(
            "# HELP {name} [STABLE] This metric records the result of all healthchecks.\n# TYPE {name} gauge\n"
        );
        for endpoint in ["healthz", "livez", "readyz"] {
            for check in self.checks(endpoint) {
                let value = i32::from(self.check(&check).await.is_ok());
                let _ = writeln!(out, "{name}{{name=\"{check}\",type=\"{endpoint}\"}} {value}");
            }
        }
        out
    }

    /// The paths of all checks, for the root document.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        for endpoint in ["healthz", "livez", "readyz"] {
            paths.push(format!("/{endpoint}"));
            paths.extend(self.checks(endpoint).into_iter().map(|c| format!("/{endpoint}/{c}")));
        }
        paths
    }
}
