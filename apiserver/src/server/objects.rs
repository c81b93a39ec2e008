//! [`Objects`] on the watch caches and, for requests, on the whole chain.

use crate::front::{Caller, Front, RequestBody};
use crate::objects::Objects;
use crate::request::User;
use crate::resources::Resources;
use crate::store::Store;
use async_trait::async_trait;
use bytes::Bytes;
use coxswain_api::catalogue::ResourceType;
use coxswain_api::{Status, Value};
use http_body_util::{BodyExt, Full};
use std::ops::Bound;
use std::sync::{Arc, OnceLock, Weak};

pub struct ServerObjects {
    resources: Arc<Resources>,
    /// Set once the front exists, which itself needs those who need this.
    front: OnceLock<Weak<Front>>,
}

impl ServerObjects {
    pub fn new(resources: Arc<Resources>) -> Self {
        Self { resources, front: OnceLock::new() }
    }

    pub fn attach(&self, front: &Arc<Front>) {
        let _ = self.front.set(Arc::downgrade(front));
    }

    fn select(
        &self,
        group: &str,
        resource: &str,
        namespace: Option<&str>,
        keep: impl Fn(&crate::store::Object) -> bool,
    ) -> Vec<Arc<Value>> {
        let Some(store) = self.resources.store(group, resource) else { return Vec::new() };
        let prefix = match namespace {
            Some(namespace) => format!("{}{namespace}/", store.prefix()),
            None => store.prefix().to_owned(),
        };
        let snapshot = store.cache().snapshot(store.feed().progress());
        let range = snapshot.objects.range::<_, str>((Bound::Included(prefix.as_str()), Bound::Unbounded));
        let own = range.take_while(|(key, _)| key.starts_with(&prefix));
        own.filter(|(_, object)| keep(object)).map(|(_, object)| object.tree()).collect()
    }
}

#[async_trait]
impl Objects for ServerObjects {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let store: Arc<Store> = self.resources.store(group, resource)?;
        store.get_cached(namespace, name).map(|object| object.tree())
    }

    async fn get_consistent(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Value>>, Status> {
        let Some(store) = self.resources.store(group, resource) else { return Ok(None) };
        Ok(store.get(namespace, name).await?.map(|object| object.tree()))
    }

    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
        self.select(group, resource, namespace, |_| true)
    }

    fn list_by_field(
        &self,
        group: &str,
        resource: &str,
        namespace: Option<&str>,
        field: &str,
        value: &str,
    ) -> Vec<Arc<Value>> {
        let store = self.resources.store(group, resource);
        if store.is_some_and(|s| s.strategy.selectable_labels().contains(&field)) {
            return self.select(group, resource, namespace, |object| object.field(field) == value);
        }
        let mut all = self.list(group, resource, namespace);
        all.retain(|o| field.split('.').try_fold(&**o, |at, key| at.get(key)).and_then(Value::as_str) == Some(value));
        all
    }

    fn equivalents(&self, group: &str, version: &str, resource: &str) -> Vec<Arc<ResourceType>> {
        self.resources.index().equivalents(group, version, resource)
    }

    fn version(&self, group: &str, resource: &str) -> u64 {
        self.resources.store(group, resource).map_or(0, |store| store.cache().changed().0)
    }

    async fn request(&self, user: &User, request: http::Request<Bytes>) -> http::Response<Bytes> {
        let front = self.front.get().and_then(Weak::upgrade);
        let Some(front) = front else {
            return http::Response::builder().status(503).body(Bytes::new()).expect("a plain response");
        };
        let request = request.map(|body| RequestBody::new(Full::new(body).map_err(|never| match never {})));
        let answer = front.serve(request, Caller::User(Arc::new(user.clone()))).await;
        let (parts, body) = answer.into_parts();
        match body.collect().await {
            Ok(collected) => http::Response::from_parts(parts, collected.to_bytes()),
            Err(e) => http::Response::builder().status(500).body(e.to_string().into()).expect("a plain response"),
        }
    }
}
