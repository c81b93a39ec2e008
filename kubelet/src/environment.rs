//! A container's environment, command and arguments (upstream: `makeEnvironmentVariables` and `third_party/forked/golang/expansion`).
//!
//! Objects are handed in by a [`Lookup`], so that everything here is arithmetic on strings.

use crate::pod::{self, PodExt};
use crate::resources;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, ResourceFieldSelector, Secret, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What the environment may refer to. Absent objects are `Err` with upstream's message, such as `configmap "x" not found`.
#[async_trait::async_trait]
pub trait Lookup: Send + Sync {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, String>;
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, String>;
    /// Services of the pod's namespace and the API server's own.
    fn services(&self, namespace: &str) -> Vec<Arc<Service>>;
}

/// Facts about the node and the pod's place that fields refer to.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    pub node_name: String,
    pub host_ips: Vec<String>,
    pub pod_ips: Vec<String>,
    /// What the node offers, for limits that are not set.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// Replaces `$(NAME)` where the name is known; `$$` is an escaped dollar sign; anything else stays as it is.
pub fn expand(input: &str, known: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.as_bytes().first() {
            Some(b'$') => {
                out.push('$');
                rest = &rest[1..];
            }
            Some(b'(') => match rest.find(')') {
                Some(end) => {
                    let name = &rest[1..end];
                    match known(name) {
                        Some(value) => out.push_str(&value),
                        None => {
                            out.push_str("$(");
                            out.push_str(name);
                            out.push(')');
                        }
                    }
                    rest = &rest[end + 1..];
                }
                None => {
                    out.push_str("$(");
                    rest = &rest[1..];
                }
            },
            _ => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

/// The value of `fieldRef` that is the same for env and volumes (upstream: `fieldpath.ExtractFieldPathAsString`). `None` if unsupported.
pub fn object_field(pod: &Pod, path: &str) -> Option<String> {
    let sorted = |map: &Option<BTreeMap<String, String>>| {
        let lines: Vec<String> = map.iter().flatten().map(|(k, v)| format!("{k}={}", go_quote(v))).collect();
        lines.join("\n")
    };
    if let Some(key) = path.strip_prefix("metadata.labels['").and_then(|p| p.strip_suffix("']")) {
        return Some(pod.metadata.labels.as_ref().and_then(|l| l.get(key)).cloned().unwrap_or_default());
    }
    if let Some(key) = path.strip_prefix("metadata.annotations['").and_then(|p| p.strip_suffix("']")) {
        return Some(pod.metadata.annotations.as_ref().and_then(|l| l.get(key)).cloned().unwrap_or_default());
    }
    Some(match path {
        "metadata.name" => pod.name().into(),
        "metadata.namespace" => pod.namespace().into(),
        "metadata.uid" => pod.uid().into(),
        "metadata.labels" => sorted(&pod.metadata.labels),
        "metadata.annotations" => sorted(&pod.metadata.annotations),
        _ => return None,
    })
}

/// Text as Go's `%q` prints it.
fn go_quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\x0b' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

pub fn env_field(pod: &Pod, path: &str, around: &Surroundings) -> Option<String> {
    Some(match path {
        "spec.nodeName" => around.node_name.clone(),
        "spec.serviceAccountName" => pod.spec().service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => around.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => around.host_ips.join(","),
        "status.podIP" => around.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => around.pod_ips.join(","),
        _ => return object_field(pod, path),
    })
}

/// A container's request or limit in units of the divisor, rounded up. Limits that are not set are the node's.
pub fn resource_field(
    pod: &Pod,
    own: &Container,
    selector: &ResourceFieldSelector,
    around: &Surroundings,
) -> Result<String, String> {
    let container = match selector.container_name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => pod::long_lived_containers(pod.spec())
            .find(|c| c.container.name == name)
            .map(|c| c.container)
            .ok_or_else(|| format!("container {name} not found"))?,
        None => own,
    };
    let unsupported = || format!("unsupported container resource : {}", selector.resource);
    let (kind, resource) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let limit = || resources::limits(container).and_then(|l| l.get(resource)).map(resources::nanos).filter(|n| *n > 0);
    let amount = match kind {
        "limits" => limit().or_else(|| around.allocatable.get(resource).map(resources::nanos)).unwrap_or(0),
        "requests" => resources::request_of(container, resource).unwrap_or(0),
        _ => return Err(unsupported()),
    };
    let divisor = selector.divisor.as_ref().map(resources::nanos).filter(|d| *d > 0).unwrap_or(1_000_000_000);
    Ok((amount.div_euclid(divisor) + i128::from(amount.rem_euclid(divisor) != 0)).to_string())
}

fn env_name_of_service(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

/// `REDIS_SERVICE_HOST` and the like (upstream: `envvars.FromServices`).
pub fn service_variables(services: &[Arc<Service>]) -> Vec<(String, String)> {
    let mut result = Vec::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let address = spec.cluster_ip.as_deref().unwrap_or_default();
        if address.is_empty() || address == "None" {
            continue;
        }
        let Some(ports) = spec.ports.as_ref().filter(|p| !p.is_empty()) else { continue };
        let prefix = env_name_of_service(service.metadata.name.as_deref().unwrap_or_default());
        result.push((format!("{prefix}_SERVICE_HOST"), address.to_string()));
        result.push((format!("{prefix}_SERVICE_PORT"), ports[0].port.to_string()));
        for port in ports {
            if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                result.push((format!("{prefix}_SERVICE_PORT_{}", env_name_of_service(name)), port.port.to_string()));
            }
        }
        // The variables of Docker's links, kept since the beginning.
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_string() };
        for (i, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            if i == 0 {
                result.push((format!("{prefix}_PORT"), url.clone()));
            }
            let portal = format!("{prefix}_PORT_{}_{protocol}", port.port);
            result.push((portal.clone(), url));
            result.push((format!("{portal}_PROTO"), protocol.to_lowercase()));
            result.push((format!("{portal}_PORT"), port.port.to_string()));
            result.push((format!("{portal}_ADDR"), address.to_string()));
        }
    }
    result
}

/// The whole environment of a container, in the order: services, `envFrom`, `env`.
pub async fn variables(
    pod: &Pod,
    container: &Container,
    around: &Surroundings,
    lookup: &dyn Lookup,
) -> Result<Vec<(String, String)>, String> {
    let namespace = pod.namespace();
    let mut services: BTreeMap<String, Arc<Service>> = BTreeMap::new();
    let links = pod.spec().enable_service_links.unwrap_or(true);
    for service in lookup.services(namespace) {
        let name = service.metadata.name.clone().unwrap_or_default();
        let own = service.metadata.namespace.as_deref() == Some(namespace);
        let master = service.metadata.namespace.as_deref() == Some("default") && name == "kubernetes";
        // The API server's service is always announced, but a service of the same name in the pod's namespace hides it if links are on.
        if master && !(links && services.get(&name).is_some_and(|s| s.metadata.namespace.as_deref() == Some(namespace)))
            || own && links
        {
            services.insert(name, service);
        }
    }
    let mut service_variables: BTreeMap<String, String> =
        service_variables(&services.into_values().collect::<Vec<_>>()).into_iter().collect();

    let mut result: BTreeMap<String, String> = BTreeMap::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            let found = lookup.config_map(namespace, &reference.name).await?;
            match found {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        result.insert(format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", reference.name)),
            }
        } else if let Some(reference) = &source.secret_ref {
            let found = lookup.secret(namespace, &reference.name).await?;
            match found {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        result.insert(format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", reference.name)),
            }
        }
    }

    // References see what was declared before them, and services, but not what comes later.
    let mut declared: HashMap<String, String> = HashMap::new();
    for var in container.env.iter().flatten() {
        let value = match &var.value {
            Some(text) if !text.is_empty() => Some(expand(text, |name| {
                declared.get(name).or_else(|| result.get(name)).or_else(|| service_variables.get(name)).cloned()
            })),
            _ if var.value_from.is_some() => reference(pod, container, var, around, lookup).await?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            service_variables.remove(&var.name);
            declared.insert(var.name.clone(), value.clone());
            result.insert(var.name.clone(), value);
        }
    }
    for (name, value) in service_variables {
        result.entry(name).or_insert(value);
    }
    Ok(result.into_iter().collect())
}

/// The value of a `valueFrom`; `None` where it is optional and absent.
async fn reference(
    pod: &Pod,
    container: &Container,
    var: &EnvVar,
    around: &Surroundings,
    lookup: &dyn Lookup,
) -> Result<Option<String>, String> {
    let Some(source) = &var.value_from else { return Ok(None) };
    let namespace = pod.namespace();
    if let Some(field) = &source.field_ref {
        return env_field(pod, &field.field_path, around)
            .map(Some)
            .ok_or_else(|| format!("unsupported fieldPath: {}", field.field_path));
    }
    if let Some(selector) = &source.resource_field_ref {
        return resource_field(pod, container, selector, around).map(Some);
    }
    if let Some(key) = &source.config_map_key_ref {
        let optional = key.optional == Some(true);
        let Some(map) = lookup.config_map(namespace, &key.name).await? else {
            return if optional { Ok(None) } else { Err(format!("configmap {:?} not found", key.name)) };
        };
        let value = map.data.as_ref().and_then(|d| d.get(&key.key)).cloned();
        return match value {
            None if !optional => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", key.key, key.name)),
            value => Ok(value),
        };
    }
    if let Some(key) = &source.secret_key_ref {
        let optional = key.optional == Some(true);
        let Some(secret) = lookup.secret(namespace, &key.name).await? else {
            return if optional { Ok(None) } else { Err(format!("secret {:?} not found", key.name)) };
        };
        let value =
            secret.data.as_ref().and_then(|d| d.get(&key.key)).map(|v| String::from_utf8_lossy(&v.0).into_owned());
        return match value {
            None if !optional => Err(format!("couldn't find key {} in Secret {namespace}/{}", key.key, key.name)),
            value => Ok(value),
        };
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_expanded_as_upstream_does() {
        let known = |name: &str| (name == "A").then(|| "x".to_string());
        for (input, output) in [
            ("$(A)", "x"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$x"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("a$(A)b$(A)", "axbx"),
        ] {
            assert_eq!(expand(input, known), output, "{input}");
        }
    }

    #[test]
    fn services_become_variables() {
        let service: Service = serde_json::from_value(serde_json::json!({"metadata": {"name": "my-db"},
            "spec": {"clusterIP": "1.2.3.4", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}]}}))
        .unwrap();
        let text: Vec<String> =
            service_variables(&[Arc::new(service)]).into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        expect_test::expect![[r#"
            MY_DB_SERVICE_HOST=1.2.3.4
            MY_DB_SERVICE_PORT=5432
            MY_DB_SERVICE_PORT_SQL=5432
            MY_DB_PORT=tcp://1.2.3.4:5432
            MY_DB_PORT_5432_TCP=tcp://1.2.3.4:5432
            MY_DB_PORT_5432_TCP_PROTO=tcp
            MY_DB_PORT_5432_TCP_PORT=5432
            MY_DB_PORT_5432_TCP_ADDR=1.2.3.4"#]]
        .assert_eq(&text.join("\n"));
    }
}
