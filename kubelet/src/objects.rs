//! Config maps and secrets that this node's pods refer to (upstream: `kubelet/configmap`, `kubelet/secret`, `util/manager`).
//!
//! Objects are fetched by name, which is all a node may do, and kept for a while, so that the many pods of a namespace do not each ask for
//! the same root certificate. A pod that is new to the node asks afresh what is older than a moment.

use crate::environment::Lookup;
use coxswain_client::Store;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An object read within this time is current enough for anybody.
const FRESH: Duration = Duration::from_secs(1);
/// Beyond this number objects that were not used lately are forgotten.
const OBJECTS_MAX: usize = 4096;

struct Cached<K> {
    entries: Mutex<HashMap<(String, String), Entry<K>>>,
}

struct Entry<K> {
    object: Option<Arc<K>>,
    read_at: Instant,
}

impl<K> Cached<K>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    fn new() -> Self {
        Cached { entries: Mutex::new(HashMap::new()) }
    }

    async fn get(
        &self,
        client: &kube::Client,
        namespace: &str,
        name: &str,
        age_max: Duration,
    ) -> Result<Option<Arc<K>>, String> {
        let key = (namespace.to_string(), name.to_string());
        if let Some(entry) = self.entries.lock().get(&key)
            && entry.object.is_some()
            && entry.read_at.elapsed() < age_max
        {
            return Ok(entry.object.clone());
        }
        let api: kube::Api<K> = kube::Api::namespaced(client.clone(), namespace);
        let object = match api.get_opt(name).await {
            Ok(object) => object.map(Arc::new),
            Err(e) => return Err(crate::api_message(&e)),
        };
        let mut entries = self.entries.lock();
        if entries.len() >= OBJECTS_MAX {
            let oldest = entries.values().map(|e| e.read_at).min();
            let limit = oldest.map(|o| o + o.elapsed() / 2);
            entries.retain(|_, e| limit.is_none_or(|l| e.read_at > l));
        }
        entries.insert(key, Entry { object: object.clone(), read_at: Instant::now() });
        Ok(object)
    }
}

pub struct Objects {
    client: kube::Client,
    config_maps: Cached<ConfigMap>,
    secrets: Cached<Secret>,
    services: Store<Service>,
}

impl Objects {
    pub fn new(client: kube::Client, services: Store<Service>) -> Self {
        Objects { client, config_maps: Cached::new(), secrets: Cached::new(), services }
    }
}

#[async_trait::async_trait]
impl Lookup for Objects {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, String> {
        // The root certificate is in every pod and never changes in practice; the sync after next is soon enough.
        let age_max = if name == "kube-root-ca.crt" { FRESH * 60 } else { FRESH };
        self.config_maps.get(&self.client, namespace, name, age_max).await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, String> {
        self.secrets.get(&self.client, namespace, name, FRESH).await
    }

    fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        let mut list = self.services.list_namespace(namespace);
        if namespace != "default" {
            list.extend(self.services.get("default", "kubernetes"));
        }
        list
    }
}
