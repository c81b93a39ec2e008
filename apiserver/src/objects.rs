//! How parts of the server other than the pipeline read and write objects: admission, authorization, allocators.
//!
//! Reads come from the watch cache. Writes take the whole pipeline under an identity of their own: even inside the server
//! there is no private door.

use crate::request::User;
use async_trait::async_trait;
use coxswain_api::catalogue::ResourceType;
use coxswain_api::{Status, Value};
use std::sync::Arc;

/// The server's own view of its objects, in their storage version, defaults applied.
#[async_trait]
pub trait Objects: Send + Sync + 'static {
    /// From the watch cache; it may lag behind the store by the time a change takes to arrive.
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// From the store itself: sees every acknowledged write.
    async fn get_consistent(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>, Status>;

    /// From the watch cache, in key order; of one namespace or of all.
    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Value>>;

    /// Like [`Objects::list`], only those whose selectable field (such as `spec.nodeName`) has this value.
    fn list_by_field(
        &self,
        group: &str,
        resource: &str,
        namespace: Option<&str>,
        field: &str,
        value: &str,
    ) -> Vec<Arc<Value>> {
        let mut all = self.list(group, resource, namespace);
        all.retain(|o| field.split('.').try_fold(&**o, |at, key| at.get(key)).and_then(Value::as_str) == Some(value));
        all
    }

    /// The other types by which the objects of a resource are served.
    fn equivalents(&self, group: &str, version: &str, resource: &str) -> Vec<Arc<ResourceType>> {
        let same = |ty: &&Arc<ResourceType>| &*ty.group_version.group == group && &*ty.plural == resource;
        let others = coxswain_api::catalogue::builtin().resources().filter(same);
        others.filter(|ty| &*ty.group_version.version != version).cloned().collect()
    }

    /// A number that changes whenever any object of the resource does; readers keep what they derived beside it and
    /// derive again when it moved.
    fn version(&self, group: &str, resource: &str) -> u64;

    /// Sends a request through the whole pipeline as `user`.
    async fn request(&self, user: &User, request: http::Request<bytes::Bytes>) -> http::Response<bytes::Bytes>;
}

/// Objects held in memory, for tests of those who only read.
#[cfg(test)]
pub(crate) mod memory {
    use super::*;
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicU64, Ordering};

    type Key = (String, String, String, String);

    #[derive(Default)]
    pub(crate) struct Memory {
        objects: parking_lot::Mutex<BTreeMap<Key, Arc<Value>>>,
        version: AtomicU64,
    }

    impl Memory {
        pub(crate) fn put(&self, group: &str, resource: &str, object: Value) {
            let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
            let key = (group.to_owned(), resource.to_owned(), text("namespace"), text("name"));
            self.objects.lock().insert(key, Arc::new(object));
            self.version.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[async_trait]
    impl Objects for Memory {
        fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
            let key = (group.to_owned(), resource.to_owned(), namespace.to_owned(), name.to_owned());
            self.objects.lock().get(&key).cloned()
        }

        async fn get_consistent(
            &self,
            group: &str,
            resource: &str,
            namespace: &str,
            name: &str,
        ) -> Result<Option<Arc<Value>>, Status> {
            Ok(self.get(group, resource, namespace, name))
        }

        fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
            let objects = self.objects.lock();
            let wanted = |k: &Key| k.0 == group && k.1 == resource && namespace.is_none_or(|n| n == k.2);
            objects.iter().filter(|(k, _)| wanted(k)).map(|(_, v)| v.clone()).collect()
        }

        fn version(&self, _group: &str, _resource: &str) -> u64 {
            self.version.load(Ordering::Relaxed)
        }

        async fn request(&self, _user: &User, _request: http::Request<bytes::Bytes>) -> http::Response<bytes::Bytes> {
            http::Response::builder().status(501).body(bytes::Bytes::new()).expect("a plain response")
        }
    }
}
