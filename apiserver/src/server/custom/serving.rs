//! Putting what definitions define into the table of what is served.

use super::{Custom, strings, text};
use crate::cache::Begin;
use crate::registry::apiextensions::custom_resource::CustomResource;
use crate::registry::apiextensions::definition::{is_true, storage_version};
use crate::resources::Served;
use crate::store::Store;
use base64::Engine;
use coxswain_api::catalogue::{GroupVersion, ResourceType, SubresourceType};
use coxswain_api::{Status, Value, schema};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// A definition made ready to be served; small, unlike its tree.
pub(super) struct Ready {
    name: String,
    /// Of its spec, so that a change is seen.
    hash: [u8; 32],
    group: String,
    plural: String,
    store: Arc<Store>,
    versions: Vec<Served>,
    /// It has only just been established, so there are no objects yet.
    is_new: bool,
}

impl Custom {
    /// None if the definition is served already as it is, or cannot be.
    pub(super) fn prepare(&self, definition: &Value) -> Option<Ready> {
        let name = text(definition, "/metadata/name").to_owned();
        let spec = definition.get("spec")?;
        let hash: [u8; 32] = Sha256::digest(spec.to_string().as_bytes()).into();
        if self.served.get(&name).is_some_and(|(old, ..)| *old == hash) {
            return None;
        }
        let stored = storage_version(definition)?;
        let versions = spec.get("versions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let made: Vec<(Arc<ResourceType>, Arc<CustomResource>, bool)> = versions
            .iter()
            .map(|version| {
                let resource = Arc::new(CustomResource::new(spec, version));
                let ty = resource_type(spec, version, stored, &resource);
                (Arc::new(ty), resource, version["served"] == true)
            })
            .collect();
        let (hub, strategy, _) = made.iter().find(|(ty, ..)| *ty.group_version.version == *stored)?.clone();
        let store = Arc::new(Store::new(hub, strategy, self.storage.clone(), self.feed.clone(), true));
        let served = made.into_iter().filter(|(.., is_served)| *is_served);
        let versions =
            served.map(|(ty, strategy, _)| Served { ty, strategy, store: Some(store.clone()), custom: true });
        Some(Ready {
            is_new: !is_true(definition, "Established") && !self.served.contains_key(&name),
            group: text(spec, "/group").to_owned(),
            plural: text(spec, "/names/plural").to_owned(),
            versions: versions.collect(),
            store,
            name,
            hash,
        })
    }

    /// Serves them from now on.
    pub(super) async fn publish(&mut self, ready: Vec<Ready>) -> Result<(), Status> {
        if ready.is_empty() {
            return Ok(());
        }
        // Watchers see the change of a schema as the end of their watch, as they do upstream.
        let prefixes = ready.iter().filter(|r| self.served.contains_key(&r.name)).map(|r| r.store.prefix());
        let prefixes: Vec<String> = prefixes.map(str::to_owned).collect();
        self.feed.remove(&prefixes).await;
        for begin in [Begin::Now, Begin::Past] {
            let stores = ready.iter().filter(|r| r.is_new == (begin == Begin::Now)).map(|r| r.store.clone());
            if let Err(status) = self.feed.add(stores.collect(), begin).await {
                // They come up again, also those of which there is nothing to write.
                for one in &ready {
                    self.known.entry(one.name.clone()).and_modify(|known| known.state = super::State::Pending);
                }
                return Err(status);
            }
        }
        self.front.resources.change(|index| {
            for one in &ready {
                index.remove(&one.group, &one.plural);
            }
            for one in ready {
                one.versions.into_iter().for_each(|served| index.insert(Arc::new(served)));
                self.served.insert(one.name, (one.hash, one.group, one.plural));
            }
        });
        Ok(())
    }

    pub(super) async fn withdraw(&mut self, name: &str) {
        if let Some((_, group, plural)) = self.served.remove(name) {
            self.front.resources.change(|index| index.remove(&group, &plural));
            self.feed.remove(&[self.feed.layout().key_prefix(&group, &plural, true)]).await;
        }
    }
}

/// As discovery lists them for custom resources.
const VERBS: [&str; 8] = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

/// One version of a definition as the catalogue has built-in resources.
fn resource_type(spec: &Value, version: &Value, stored: &str, resource: &Arc<CustomResource>) -> ResourceType {
    let boxes = |pointer: &str| -> Vec<Box<str>> { strings(spec, pointer).into_iter().map(Into::into).collect() };
    let group_version = GroupVersion { group: text(spec, "/group").into(), version: text(version, "/name").into() };
    let kind = text(spec, "/names/kind");
    let object = resource.object_type();
    let mut subresources = Vec::new();
    if version.pointer("/subresources/status").is_some_and(|s| !s.is_null()) {
        subresources.push(SubresourceType {
            name: "status".into(),
            group_version: group_version.clone(),
            kind: kind.into(),
            verbs: ["get", "patch", "update"].map(Into::into).into(),
            schema: object.clone(),
        });
    }
    if version.pointer("/subresources/scale").is_some_and(|s| !s.is_null())
        && let Some(scale) = schema::builtin().kind("autoscaling", "v1", "Scale")
    {
        subresources.push(SubresourceType {
            name: "scale".into(),
            group_version: GroupVersion { group: "autoscaling".into(), version: "v1".into() },
            kind: "Scale".into(),
            verbs: ["get", "patch", "update"].map(Into::into).into(),
            schema: scale.clone(),
        });
    }
    let hash = Sha256::digest(format!("{}/{stored}/{kind}", group_version.group));
    ResourceType {
        plural: text(spec, "/names/plural").into(),
        singular: text(spec, "/names/singular").into(),
        kind: kind.into(),
        list_kind: text(spec, "/names/listKind").into(),
        namespaced: text(spec, "/scope") == "Namespaced",
        short_names: boxes("/names/shortNames"),
        categories: boxes("/names/categories"),
        verbs: VERBS.map(Into::into).into(),
        subresources,
        storage_group: group_version.group.clone(),
        storage_version: stored.into(),
        storage_version_hash: base64::engine::general_purpose::STANDARD.encode(&hash[..8]).into(),
        served_by_default: true,
        schema: object,
        group_version,
    }
}
