//! An APIService for every group and version that this server itself answers for (upstream: the autoregister controller of
//! `kube-aggregator` and `pkg/controlplane/controller/crdregistration`).
//!
//! Those of built-in groups are seen to at a start only, those of custom resources follow their definitions.

use super::bootstrap::send;
use crate::objects::Objects;
use crate::resources::Index;
use crate::store::Store;
use coxswain_api::{Value, json};
use coxswain_storage::Revision;
use std::collections::BTreeMap;

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Priorities of the built-in groups: group, its priority, and those of its versions. The order is that of kubectl's output.
const BUILTIN: &[(&str, i32, &[(&str, i32)])] = &[
    ("", 18000, &[("v1", 1)]),
    ("apps", 17800, &[("v1", 15)]),
    ("events.k8s.io", 17750, &[("v1", 15)]),
    ("authentication.k8s.io", 17700, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("authorization.k8s.io", 17600, &[("v1", 15)]),
    ("autoscaling", 17500, &[("v1", 15), ("v2", 30)]),
    ("batch", 17400, &[("v1", 15)]),
    ("certificates.k8s.io", 17300, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("networking.k8s.io", 17200, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("policy", 17100, &[("v1", 15)]),
    ("rbac.authorization.k8s.io", 17000, &[("v1", 15)]),
    ("storage.k8s.io", 16800, &[("v1", 15), ("v1beta1", 9), ("v1alpha1", 1)]),
    ("apiextensions.k8s.io", 16700, &[("v1", 15)]),
    ("admissionregistration.k8s.io", 16700, &[("v1", 15), ("v1beta1", 12), ("v1alpha1", 9)]),
    ("scheduling.k8s.io", 16600, &[("v1", 15), ("v1alpha2", 9), ("v1alpha1", 9)]),
    ("coordination.k8s.io", 16500, &[("v1", 15), ("v1beta1", 13), ("v1alpha2", 12)]),
    ("node.k8s.io", 16300, &[("v1", 15)]),
    ("discovery.k8s.io", 16200, &[("v1", 15)]),
    ("flowcontrol.apiserver.k8s.io", 16100, &[("v1", 21)]),
    ("internal.apiserver.k8s.io", 16000, &[("v1alpha1", 9)]),
    ("resource.k8s.io", 15900, &[("v1", 15), ("v1beta2", 12), ("v1beta1", 11), ("v1alpha3", 9)]),
    ("storagemigration.k8s.io", 15800, &[("v1beta1", 9)]),
];

/// Custom resources come after everything built in; among each other by name and version.
const CUSTOM: (i32, i32) = (1000, 100);

fn api_service(group: &str, version: &str, priorities: (i32, i32), managed: &str) -> Value {
    let mut object = json!({
        "kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
        "metadata": {"name": format!("{version}.{group}"), "labels": {MANAGED: managed}},
        "spec": {"version": version, "groupPriorityMinimum": priorities.0, "versionPriority": priorities.1},
    });
    if !group.is_empty() {
        object["spec"]["group"] = group.into();
    }
    object
}

/// Registers what is built in, where it is missing or differs.
pub async fn register_builtin(objects: &dyn Objects, index: &Index, api_services: &Store) -> Result<(), String> {
    for (group, priority, versions) in BUILTIN {
        for (version, version_priority) in versions.iter().filter(|(v, _)| index.has_version(group, v)) {
            let wanted = api_service(group, version, (*priority, *version_priority), "onstart");
            ensure(objects, api_services, &wanted).await?;
        }
    }
    Ok(())
}

/// What definitions define, each as it was when it was last looked at: a change costs what it costs, and not what all
/// definitions do.
#[derive(Default)]
pub struct Defined {
    /// By name of the definition: its revision, its group and its served versions.
    definitions: BTreeMap<String, (Revision, String, Vec<String>)>,
    /// The revision of every API service that was found right, by name.
    right: BTreeMap<String, Revision>,
}

impl Defined {
    /// Registers what definitions define, and removes what none defines any more.
    pub async fn register(
        &mut self,
        objects: &dyn Objects,
        definitions: &Store,
        api_services: &Store,
    ) -> Result<(), String> {
        self.look(definitions);
        let mut wanted = BTreeMap::new();
        for (_, group, versions) in self.definitions.values() {
            wanted.extend(versions.iter().map(|version| (format!("{version}.{group}"), (group, version))));
        }
        for (name, (group, version)) in &wanted {
            let present = api_services.get_cached("", name).map(|object| object.revision);
            if present.is_some() && self.right.get(name) == present.as_ref() {
                continue;
            }
            ensure(objects, api_services, &api_service(group, version, CUSTOM, "true")).await?;
            // One that was written comes back as a change.
            self.right.extend(present.map(|revision| (name.clone(), revision)));
        }
        self.right.retain(|name, _| wanted.contains_key(name));
        let snapshot = api_services.cache().snapshot(api_services.feed().progress());
        for present in snapshot.objects.values() {
            let name = present.name();
            if present.label(MANAGED) != Some("true") || wanted.contains_key(name) {
                continue;
            }
            match send(objects, "DELETE", &format!("{SERVICES}/{name}"), None).await? {
                (200 | 404, _) => {}
                (code, answer) => return Err(format!("deleting {name}: {code} {}", answer["message"])),
            }
        }
        Ok(())
    }

    /// Reads the definitions that have changed.
    fn look(&mut self, definitions: &Store) {
        let snapshot = definitions.cache().snapshot(definitions.feed().progress());
        let mut before = std::mem::take(&mut self.definitions);
        for object in snapshot.objects.values() {
            let known = before.remove(object.name()).filter(|(revision, ..)| *revision == object.revision);
            let read = || {
                let definition = object.tree();
                let group = definition.pointer("/spec/group").and_then(Value::as_str).unwrap_or_default();
                let versions = definition.pointer("/spec/versions").and_then(Value::as_array).into_iter().flatten();
                let served = versions.filter(|v| v["served"] == true).filter_map(|v| v["name"].as_str());
                (object.revision, group.to_owned(), served.map(str::to_owned).collect())
            };
            self.definitions.insert(object.name().to_owned(), known.unwrap_or_else(read));
        }
    }
}

/// Creates an API service, or puts its specification right, unless somebody took it over by removing the label.
async fn ensure(objects: &dyn Objects, api_services: &Store, wanted: &Value) -> Result<(), String> {
    let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
    let (method, path, body) = match api_services.get_cached("", name) {
        None => ("POST", SERVICES.to_owned(), wanted.clone()),
        Some(object) => {
            let present = object.tree();
            let is_managed = present["metadata"]["labels"][MANAGED].is_string();
            if !is_managed || present["spec"] == wanted["spec"] {
                return Ok(());
            }
            let mut changed = Value::clone(&present);
            changed["spec"] = wanted["spec"].clone();
            ("PUT", format!("{SERVICES}/{name}"), changed)
        }
    };
    match send(objects, method, &format!("{path}?fieldManager=kube-apiserver"), Some(&body)).await? {
        (200 | 201 | 404 | 409, _) => Ok(()),
        (code, answer) => Err(format!("registering {name}: {code} {}", answer["message"])),
    }
}
