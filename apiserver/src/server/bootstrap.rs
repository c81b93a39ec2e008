//! What every cluster has: created by the server itself after its start, and again whenever it is missing at a start
//! (upstream: the post-start hooks of `pkg/controlplane`).
//!
//! The server writes through its own pipeline as `system:apiserver`.

mod endpoints;
mod flow_control;
mod service_repair;

use super::Config;
use crate::authentication::MASTERS;
use crate::front::Front;
use crate::objects::Objects;
use crate::request::User;
use bytes::Bytes;
use coxswain_api::{Value, json};
use coxswain_storage::Storage;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// The hooks that this module reports as done.
pub const HOOKS: [&str; 7] = [
    service_repair::HOOK,
    "start-system-namespaces-controller",
    "rbac/bootstrap-roles",
    "scheduling/bootstrap-system-priority-classes",
    "priority-and-fairness-config-producer",
    "start-kubernetes-service-cidr-controller",
    "bootstrap-controller",
];

const RETRY: Duration = Duration::from_millis(500);
/// How often the kubernetes service and its endpoints are looked after (upstream: `DefaultEndpointReconcilerInterval`).
const KEEP: Duration = Duration::from_secs(10);

/// The server's own identity.
pub fn identity() -> User {
    User { name: "system:apiserver".into(), groups: vec![MASTERS.into()], ..User::default() }
}

/// Runs every hook until it succeeded.
pub async fn run(front: Arc<Front>, objects: Arc<dyn Objects>, config: Config) -> JoinHandle<()> {
    // Before anything that may take an address.
    let repair =
        service_repair::start(front.clone(), objects.clone(), config.hostname.as_deref().unwrap_or_default()).await;
    tokio::spawn(repair.keep_on());
    for hook in HOOKS.into_iter().filter(|hook| *hook != service_repair::HOOK) {
        if hook == "bootstrap-controller" {
            // Some addresses cannot be endpoints at all; that must not keep the server from being ready.
            if let Err(why) = kubernetes_endpoints(&front, &*objects, &config).await {
                tracing::warn!(%why, "the kubernetes service could not be brought up to date");
            }
            front.health.done(hook);
            continue;
        }
        loop {
            let done = match hook {
                "start-system-namespaces-controller" => match namespaces(&*objects).await {
                    Ok(()) => authentication_info(&*objects, &config).await,
                    Err(error) => Err(error),
                },
                "rbac/bootstrap-roles" => crate::registry::rbac::bootstrap::reconcile(&*objects).await,
                "scheduling/bootstrap-system-priority-classes" => priority_classes(&*objects).await,
                "priority-and-fairness-config-producer" => flow_control::ensure(&*objects).await,
                _ => service_cidr(&*objects, &config).await,
            };
            match done {
                Ok(()) => break,
                Err(why) => tracing::warn!(hook, %why, "a start-up hook failed and is tried again"),
            }
            tokio::time::sleep(RETRY).await;
        }
        front.health.done(hook);
    }
    tokio::spawn(keep_kubernetes_service(front, objects, config))
}

/// The service and its endpoints are put right again whoever changes them, until the server ends, which then is an
/// endpoint no longer.
async fn keep_kubernetes_service(front: Arc<Front>, objects: Arc<dyn Objects>, config: Config) {
    let mut shutdown = front.shutdown.clone();
    loop {
        tokio::select! {
            () = tokio::time::sleep(KEEP) => {}
            _ = shutdown.wait_for(|stop| *stop) => break,
        }
        if let Err(why) = kubernetes_endpoints(&front, &*objects, &config).await {
            tracing::debug!(%why, "the kubernetes service could not be brought up to date");
        }
    }
    let Some(storage) = storage(&front) else { return };
    if let Err(why) = endpoints::leave(&*objects, &*storage, &config).await {
        tracing::warn!(%why, "this server could not be taken out of the endpoints of the kubernetes service");
    }
}

/// Sends a request as the server itself. The method `APPLY` is a PATCH that applies, `PATCH` one that merges.
pub(super) async fn send(
    objects: &dyn Objects,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<(u16, Value), String> {
    let (method, content_type) = match method {
        "APPLY" => ("PATCH", "application/apply-patch+yaml"),
        "PATCH" => ("PATCH", "application/merge-patch+json"),
        method => (method, "application/json"),
    };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content_type)
        .header("user-agent", "kube-apiserver/v1.36.2")
        .body(Bytes::from(body.map(Value::to_string).unwrap_or_default()))
        .map_err(|e| e.to_string())?;
    let response = objects.request(&identity(), request).await;
    let code = response.status().as_u16();
    Ok((code, serde_json::from_slice(response.body()).unwrap_or(Value::Null)))
}

/// Creates an object unless there is one of its name.
async fn ensure(objects: &dyn Objects, collection: &str, object: &Value) -> Result<(), String> {
    ensure_as(objects, "kube-apiserver", collection, object).await
}

/// As [`ensure`], for the account of this field manager.
async fn ensure_as(objects: &dyn Objects, manager: &str, collection: &str, object: &Value) -> Result<(), String> {
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let (code, _) = send(objects, "GET", &format!("{collection}/{name}"), None).await?;
    if code == 200 {
        return Ok(());
    }
    let path = format!("{collection}?fieldManager={manager}");
    match send(objects, "POST", &path, Some(object)).await? {
        (200 | 201 | 409, _) => Ok(()),
        (code, answer) => {
            let message = answer.get("message").and_then(Value::as_str).unwrap_or_default();
            Err(format!("creating {collection}/{name}: {code} {message}"))
        }
    }
}

async fn namespaces(objects: &dyn Objects) -> Result<(), String> {
    for name in ["kube-system", "kube-public", "kube-node-lease", "default"] {
        let object = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}});
        ensure(objects, "/api/v1/namespaces", &object).await?;
    }
    Ok(())
}

/// Whose certificates this server believes, for components that check callers of their own (upstream:
/// `controller/clusterauthenticationtrust`). Several servers of a cluster add to it; none takes away.
async fn authentication_info(objects: &dyn Objects, config: &Config) -> Result<(), String> {
    const MAPS: &str = "/api/v1/namespaces/kube-system/configmaps";
    const NAME: &str = "extension-apiserver-authentication";
    let wanted = authentication_data(config)?;
    if wanted.is_empty() {
        return Ok(());
    }
    let path = format!("{MAPS}/{NAME}");
    let (code, mut present) = send(objects, "GET", &path, None).await?;
    if code != 200 {
        let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": NAME, "namespace": "kube-system"},
            "data": wanted});
        return ensure(objects, MAPS, &object).await;
    }
    let before = present["data"].clone();
    if !before.is_object() {
        present["data"] = json!({});
    }
    for (key, value) in &wanted {
        let old = before[key].as_str().unwrap_or_default();
        let value = value.as_str().unwrap_or_default();
        // Authorities are added to those of other servers; of the rest the last word counts.
        present["data"][key] = match key.ends_with("-ca-file") && !old.is_empty() {
            true if old.contains(value.trim()) => json!(old),
            true => json!(format!("{}\n{value}", old.trim_end())),
            false => json!(value),
        };
    }
    if present["data"] == before {
        return Ok(());
    }
    match send(objects, "PUT", &format!("{path}?fieldManager=kube-apiserver"), Some(&present)).await? {
        (200, _) => Ok(()),
        (code, answer) => Err(format!("updating {path}: {code} {}", answer["message"].as_str().unwrap_or_default())),
    }
}

fn authentication_data(config: &Config) -> Result<coxswain_api::Map<String, Value>, String> {
    let mut data = coxswain_api::Map::new();
    let authentication = &config.authentication;
    if !authentication.client_ca_pem.is_empty() {
        let text = String::from_utf8_lossy(&authentication.client_ca_pem);
        data.insert("client-ca-file".into(), json!(text));
    }
    if let Some(headers) = &authentication.request_header {
        let file = &headers.client_ca_file;
        let text = std::fs::read_to_string(file).map_err(|e| format!("reading {}: {e}", file.display()))?;
        data.insert("requestheader-client-ca-file".into(), json!(text));
        for (key, list) in [
            ("allowed-names", &headers.allowed_names),
            ("extra-headers-prefix", &headers.extra_header_prefixes),
            ("group-headers", &headers.group_headers),
            ("uid-headers", &headers.uid_headers),
            ("username-headers", &headers.username_headers),
        ] {
            data.insert(format!("requestheader-{key}"), json!(json!(list).to_string()));
        }
    }
    Ok(data)
}

async fn priority_classes(objects: &dyn Objects) -> Result<(), String> {
    let classes = [
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ];
    for (name, value, description) in classes {
        let object = json!({
            "kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "metadata": {"name": name},
            "value": value, "description": description,
        });
        ensure(objects, "/apis/scheduling.k8s.io/v1/priorityclasses", &object).await?;
    }
    Ok(())
}

async fn service_cidr(objects: &dyn Objects, config: &Config) -> Result<(), String> {
    let object = json!({
        "kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": config.service_cluster_ip_range.split(',').collect::<Vec<_>>()},
    });
    ensure(objects, "/apis/networking.k8s.io/v1/servicecidrs", &object).await
}

/// The `kubernetes` service; whatever becomes of it, its endpoints are kept.
async fn kubernetes_endpoints(front: &Front, objects: &dyn Objects, config: &Config) -> Result<(), String> {
    let service = kubernetes_service(objects, config).await;
    let storage = storage(front).ok_or("services are not served")?;
    endpoints::reconcile(objects, &*storage, config).await?;
    service
}

fn storage(front: &Front) -> Option<Arc<dyn Storage>> {
    Some(front.resources.store("", "services")?.storage().clone())
}

/// The `kubernetes` service, whose endpoints are the API servers themselves.
async fn kubernetes_service(objects: &dyn Objects, config: &Config) -> Result<(), String> {
    let first = config.service_cluster_ip_range.split(',').next().unwrap_or_default();
    let range: ipnet::IpNet = first.parse().map_err(|e| format!("service cluster IP range {first}: {e}"))?;
    let cluster_ip = range.hosts().next().ok_or("the service cluster IP range is empty")?;
    let service = json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"provider": "kubernetes", "component": "apiserver"},
        },
        "spec": {
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": config.secure_port}],
            "clusterIP": cluster_ip.to_string(), "clusterIPs": [cluster_ip.to_string()],
            "sessionAffinity": "None", "type": "ClusterIP",
        },
    });
    ensure(objects, "/api/v1/namespaces/default/services", &service).await
}

/// Creates an object, or writes it again where what is at `what` differs: the server may have moved.
async fn replace(objects: &dyn Objects, collection: &str, object: &Value, what: &str) -> Result<(), String> {
    ensure(objects, collection, object).await?;
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let path = format!("{collection}/{name}");
    let (code, mut current) = send(objects, "GET", &path, None).await?;
    if code != 200 || current.pointer(what) == object.pointer(what) {
        return Ok(());
    }
    for field in [what, "/ports"] {
        if let (Some(slot), Some(value)) = (current.pointer_mut(field), object.pointer(field)) {
            *slot = value.clone();
        }
    }
    match send(objects, "PUT", &path, Some(&current)).await? {
        (200 | 201, _) => Ok(()),
        (code, answer) => Err(format!("updating {path}: {code} {}", answer["message"])),
    }
}
