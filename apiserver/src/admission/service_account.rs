//! Every pod runs as a service account of its namespace and, unless told not to, finds a token for it in a volume
//! (upstream: `plugin/pkg/admission/serviceaccount`).

use super::{Attributes, Operation, Plugin};
use crate::authorization::node;
use crate::objects::Objects;
use async_trait::async_trait;
use coxswain_api::field::go_quote;
use coxswain_api::{Status, Value};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The account `default` of a new namespace is made by a controller, a moment after the namespace.
const DEFAULT_ATTEMPTS: u32 = 10;
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

pub struct ServiceAccount {
    objects: Arc<dyn Objects>,
}

impl ServiceAccount {
    pub fn new(objects: Arc<dyn Objects>) -> Self {
        Self { objects }
    }

    async fn account(&self, attributes: &Attributes<'_>, name: &str) -> Result<Arc<Value>, Status> {
        let namespace = attributes.namespace;
        if let Some(found) = self.objects.get("", "serviceaccounts", namespace, name) {
            return Ok(found);
        }
        if let Some(why) = coxswain_api::names::unaddressable(name) {
            return Err(attributes.forbidden(format!("error looking up service account {namespace}/{name}: {why}")));
        }
        let attempts = if name == "default" { DEFAULT_ATTEMPTS } else { 1 };
        for attempt in 0..attempts {
            if attempt > 0 {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            if let Some(found) = self.objects.get_consistent("", "serviceaccounts", namespace, name).await? {
                return Ok(found);
            }
        }
        Err(attributes.forbidden(format!(
            "error looking up service account {namespace}/{name}: serviceaccount {} not found",
            go_quote(name)
        )))
    }
}

#[async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn admit(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if !attributes.is("", "pods") || attributes.operation != Operation::Create {
            return Ok(());
        }
        let Some(pod) = attributes.new_object() else { return Ok(()) };
        if is_mirror(pod) {
            return check_mirror(attributes, pod);
        }
        let name = match account_name(pod) {
            "" => "default".to_owned(),
            name => name.to_owned(),
        };
        let account = self.account(attributes, &name).await?;
        let Some(pod) = attributes.object.as_deref_mut() else { return Ok(()) };
        // The older of both names always shows the same.
        pod["spec"]["serviceAccountName"] = json!(name);
        pod["spec"]["serviceAccount"] = json!(name);
        let automount = pod["spec"]["automountServiceAccountToken"]
            .as_bool()
            .or(account["automountServiceAccountToken"].as_bool())
            .unwrap_or(true);
        if automount {
            mount_token(pod);
        }
        let none = |v: &Value| v.as_array().is_none_or(Vec::is_empty);
        if none(&pod["spec"]["imagePullSecrets"]) && !none(&account["imagePullSecrets"]) {
            let names = account["imagePullSecrets"].as_array().into_iter().flatten();
            let secrets: Vec<Value> = names.map(|s| json!({"name": s["name"]})).collect();
            pod["spec"]["imagePullSecrets"] = json!(secrets);
        }
        check_mountable(attributes, &account)
    }

    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        if !attributes.is_of("", "pods") {
            return Ok(());
        }
        let Some(pod) = attributes.new_object() else { return Ok(()) };
        let ephemeral = attributes.operation == Operation::Update && attributes.subresource == "ephemeralcontainers";
        let create = attributes.operation == Operation::Create && attributes.subresource.is_empty();
        if !ephemeral && !create {
            return Ok(());
        }
        if is_mirror(pod) {
            return if create { check_mirror(attributes, pod) } else { Ok(()) };
        }
        match account_name(pod) {
            "" if create => {
                let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                let why = format!("no service account specified for pod {}/{name}", attributes.namespace);
                Err(attributes.forbidden(why))
            }
            "" => Ok(()),
            name => check_mountable(attributes, &*self.account(attributes, name).await?),
        }
    }
}

fn account_name(pod: &Value) -> &str {
    let name = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default();
    if name.is_empty() { pod["spec"]["serviceAccount"].as_str().unwrap_or_default() } else { name }
}

fn is_mirror(pod: &Value) -> bool {
    !pod["metadata"]["annotations"][MIRROR].is_null()
}

fn check_mirror(attributes: &Attributes<'_>, pod: &Value) -> Result<(), Status> {
    if !account_name(pod).is_empty() {
        return Err(attributes.forbidden("a mirror pod may not reference service accounts"));
    }
    if node::secrets(pod).next().is_some() {
        return Err(attributes.forbidden("a mirror pod may not reference secrets"));
    }
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let mut sources = volumes.flat_map(|v| v["projected"]["sources"].as_array().into_iter().flatten());
    if sources.any(|s| s["serviceAccountToken"].is_object()) {
        return Err(attributes.forbidden("a mirror pod may not use ServiceAccountToken volume projections"));
    }
    Ok(())
}

/// Adds the token volume, and mounts it in every container that has nothing else at its path.
fn mount_token(pod: &mut Value) {
    let suffix = coxswain_api::names::generate("kube-api-access-", rand::random());
    let mut needed = false;
    for kind in ["initContainers", "containers"] {
        for container in pod["spec"][kind].as_array_mut().into_iter().flatten() {
            let mounts = &mut container["volumeMounts"];
            if !mounts.is_array() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if mounts.iter().any(|m| m["mountPath"] == MOUNT_PATH) {
                continue;
            }
            mounts.push(json!({"name": suffix, "readOnly": true, "mountPath": MOUNT_PATH}));
            needed = true;
        }
    }
    if needed {
        let volumes = &mut pod["spec"]["volumes"];
        if !volumes.is_array() {
            *volumes = json!([]);
        }
        if let Some(volumes) = volumes.as_array_mut() {
            volumes.push(token_volume(&suffix));
        }
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {
            "expirationSeconds": crate::authentication::service_account::WARN_ONLY_EXPIRATION_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

/// An account whose annotation demands it lends only the secrets that it lists.
fn check_mountable(attributes: &Attributes<'_>, account: &Value) -> Result<(), Status> {
    let enforced = &account["metadata"]["annotations"]["kubernetes.io/enforce-mountable-secrets"];
    if !matches!(enforced.as_str(), Some("1" | "t" | "T" | "true" | "TRUE" | "True")) {
        return Ok(());
    }
    let Some(pod) = attributes.new_object() else { return Ok(()) };
    let list = |v: &'_ Value| -> BTreeSet<String> {
        v.as_array().into_iter().flatten().filter_map(|s| s["name"].as_str()).map(str::to_owned).collect()
    };
    let name = account["metadata"]["name"].as_str().unwrap_or_default();
    let mountable = list(&account["secrets"]);
    let ephemeral_only = attributes.subresource == "ephemeralcontainers";
    if !ephemeral_only {
        for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
            let Some(secret) = volume["secret"]["secretName"].as_str() else { continue };
            if !mountable.contains(secret) {
                return Err(attributes.forbidden(format!(
                    "volume with secret.secretName={} is not allowed because service account {name} does not reference that secret",
                    go_quote(secret)
                )));
            }
        }
    }
    let kinds: &[(&str, &str)] = if ephemeral_only {
        &[("ephemeralContainers", "ephemeral container")]
    } else {
        &[("initContainers", "init container"), ("containers", "container")]
    };
    for (kind, what) in kinds {
        for container in pod["spec"][kind].as_array().into_iter().flatten() {
            let own = container["name"].as_str().unwrap_or_default();
            for env in container["env"].as_array().into_iter().flatten() {
                let Some(secret) = env["valueFrom"]["secretKeyRef"]["name"].as_str() else { continue };
                if !mountable.contains(secret) {
                    let variable = env["name"].as_str().unwrap_or_default();
                    return Err(attributes.forbidden(format!(
                        "{what} {own} with envVar {variable} referencing secret.secretName={} is not allowed because service account {name} does not reference that secret",
                        go_quote(secret)
                    )));
                }
            }
            for env in container["envFrom"].as_array().into_iter().flatten() {
                let Some(secret) = env["secretRef"]["name"].as_str() else { continue };
                if !mountable.contains(secret) {
                    return Err(attributes.forbidden(format!(
                        "{what} {own} with envFrom referencing secret.secretName={} is not allowed because service account {name} does not reference that secret",
                        go_quote(secret)
                    )));
                }
            }
        }
    }
    if ephemeral_only {
        return Ok(());
    }
    let lent = list(&account["imagePullSecrets"]);
    for (index, secret) in pod["spec"]["imagePullSecrets"].as_array().into_iter().flatten().enumerate() {
        let secret = secret["name"].as_str().unwrap_or_default();
        if !lent.contains(secret) {
            return Err(attributes.forbidden(format!(
                "imagePullSecrets[{index}].name={} is not allowed because service account {name} does not reference that imagePullSecret",
                go_quote(secret)
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_with_something_at_the_path_gets_no_token() {
        let mut pod = json!({"spec": {"containers": [
            {"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}]}});
        mount_token(&mut pod);
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["name"], pod["spec"]["volumes"][0]["name"]);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        let mut alone = json!({"spec": {"containers": [
            {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}]}});
        mount_token(&mut alone);
        assert!(alone["spec"]["volumes"].is_null());
    }
}
