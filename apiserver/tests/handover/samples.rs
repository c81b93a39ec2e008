//! Objects as upstream stores them.

use anyhow::{Context, Result, bail};
use base64::Engine;
use coxswain_api::catalogue::ResourceType;
use coxswain_api::{Value, json};
use coxswain_apiserver::server::Server;
use coxswain_apiserver::store::Store;
use std::path::Path;
use std::sync::Arc;

pub struct Sample {
    pub name: String,
    pub json: Value,
    pub stored: Vec<u8>,
}

/// Pairs of `NAME.json` and `NAME.pb`.
pub fn read(folder: &Path) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "pb") {
            let json = std::fs::read(path.with_extension("json"))?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            samples.push(Sample { name, json: serde_json::from_slice(&json)?, stored: std::fs::read(&path)? });
        }
    }
    samples.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(samples)
}

/// A few in versions that are not those we store.
pub fn of_versions() -> Result<Vec<Sample>> {
    let meta = json!({"name": "n", "namespace": "ns", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"});
    let of = |api_version: &str, kind: &str, spec: Value| -> Result<Sample> {
        let json = json!({"apiVersion": api_version, "kind": kind, "metadata": meta, "spec": spec});
        let stored = serde_json::to_vec(&json)?;
        Ok(Sample { name: format!("{api_version} {kind}"), json, stored })
    };
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let workload = json!({"selector": {"matchLabels": {"a": "b"}}, "template": template});
    let job = json!({"schedule": "* * * * *", "jobTemplate": {"spec": {"template": template}}});
    Ok(vec![
        of(
            "autoscaling/v1",
            "HorizontalPodAutoscaler",
            json!({"maxReplicas": 1, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}),
        )?,
        of("apps/v1beta2", "Deployment", workload.clone())?,
        of("apps/v1beta1", "StatefulSet", workload.clone())?,
        of("extensions/v1beta1", "DaemonSet", workload)?,
        of("batch/v1beta1", "CronJob", job)?,
        of("policy/v1beta1", "PodDisruptionBudget", json!({"minAvailable": 1}))?,
    ])
}

/// The store in which upstream keeps a kind, and the version in which it is best looked at.
pub fn store_of(server: &Server, group: &str, version: &str, kind: &str) -> Option<(Arc<Store>, Arc<ResourceType>)> {
    let resources = server.resources();
    if let Some(served) = resources.by_kind(group, version, kind) {
        return Some((served.store.clone()?, served.ty.clone()));
    }
    // Not served any more, or not by default: what is stored is served in another version, if not in another group.
    let moved = match (group, kind) {
        ("extensions", "Deployment" | "DaemonSet" | "ReplicaSet") => "apps",
        ("extensions", "Ingress" | "NetworkPolicy") => "networking.k8s.io",
        _ => group,
    };
    let stores = resources.index().stores();
    let store = stores.into_iter().find(|s| *s.hub.group_version.group == *moved && *s.hub.kind == *kind)?;
    let hub = store.hub.clone();
    Some((store, hub))
}

/// What upstream itself makes of a stored object: fields that stand for one another are brought to agree.
pub fn as_read(mut value: Value) -> Value {
    if let Some(Value::Object(texts)) = value.as_object_mut().and_then(|o| o.remove("stringData")) {
        for (name, text) in texts {
            value["data"][name] = base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or("")).into();
        }
    }
    match &mut value {
        Value::Object(map) => {
            for (new, old) in [("serviceAccountName", "serviceAccount"), ("podCIDR", "podCIDRs")] {
                if let (Some(text), true) = (map.get(new).cloned(), map.contains_key(old)) {
                    let text = if old == "podCIDRs" { json!([text]) } else { text };
                    map.insert(old.into(), text);
                }
            }
            map.values_mut().for_each(|v| *v = as_read(v.take()));
        }
        Value::Array(list) => list.iter_mut().for_each(|v| *v = as_read(v.take())),
        _ => {}
    }
    value
}

/// Whether an answer says all that a sample says; defaults may have come to it.
pub fn covers(sample: &Value, answer: &Value, path: &str) -> Result<()> {
    match (sample, answer) {
        (Value::Object(sample), Value::Object(answer)) => {
            for (name, value) in sample {
                let path = format!("{path}.{name}");
                if matches!(
                    path.as_str(),
                    ".metadata.resourceVersion" | "metadata.resourceVersion" | ".metadata.selfLink"
                ) {
                    continue;
                }
                covers(value, answer.get(name).unwrap_or(&Value::Null), &path)?;
            }
            Ok(())
        }
        (Value::Array(sample), Value::Array(answer)) if sample.len() == answer.len() => {
            sample.iter().zip(answer).enumerate().try_for_each(|(i, (s, a))| covers(s, a, &format!("{path}[{i}]")))
        }
        _ if sample == answer => Ok(()),
        (Value::Object(sample), Value::Null) if sample.is_empty() => Ok(()),
        _ => bail!("{path} is {answer}, not {sample}"),
    }
}
