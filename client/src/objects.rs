//! Requests on single typed objects of any scope. [`kube::Api`] does the same for one namespace at a time; a controller
//! works on objects of all namespaces and has their metadata at hand.

use http::Method;
use kube::Client;
use kube::client::Body;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};

use crate::informer::reflector_check as check;
use crate::informer::{Object, ObjectKey};

/// The content types of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    Json,
    Merge,
    Strategic,
}

/// How an object is to be deleted.
#[derive(Clone, Debug, Default)]
pub struct Deletion<'a> {
    /// `Background`, `Foreground` or `Orphan`; the server's default otherwise.
    pub propagation: Option<&'a str>,
    pub grace_seconds: Option<i64>,
    /// Only the object of this UID.
    pub uid: Option<&'a str>,
    pub resource_version: Option<&'a str>,
}

impl Deletion<'_> {
    fn body(&self) -> Value {
        let mut body = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        if let Some(propagation) = self.propagation {
            body["propagationPolicy"] = json!(propagation);
        }
        if let Some(seconds) = self.grace_seconds {
            body["gracePeriodSeconds"] = json!(seconds);
        }
        if self.uid.is_some() || self.resource_version.is_some() {
            let mut preconditions = json!({});
            if let Some(uid) = self.uid {
                preconditions["uid"] = json!(uid);
            }
            if let Some(version) = self.resource_version {
                preconditions["resourceVersion"] = json!(version);
            }
            body["preconditions"] = preconditions;
        }
        body
    }
}

/// Reads something in a form other than plain JSON objects.
pub async fn get_as<T: DeserializeOwned>(client: &Client, path: &str, accept: &str) -> Result<T, kube::Error> {
    let request = http::Request::builder().uri(path).header(http::header::ACCEPT, accept);
    let request = request.body(Body::empty()).map_err(kube::Error::HttpError)?;
    let bytes = check(client.send(request).await?).await?.into_body().collect_bytes().await?;
    serde_json::from_slice(&bytes).map_err(kube::Error::SerdeError)
}

/// Sends a request with a JSON body and reads the answer.
pub async fn request<T: DeserializeOwned>(
    client: &Client,
    method: Method,
    path: &str,
    content_type: &str,
    body: Option<Vec<u8>>,
) -> Result<T, kube::Error> {
    let mut request =
        http::Request::builder().method(method).uri(path).header(http::header::ACCEPT, "application/json");
    if body.is_some() {
        request = request.header(http::header::CONTENT_TYPE, content_type);
    }
    let request = request.body(body.map_or_else(Body::empty, Body::from)).map_err(kube::Error::HttpError)?;
    let response = check(client.send(request).await?).await?;
    let bytes = response.into_body().collect_bytes().await?;
    serde_json::from_slice(&bytes).map_err(kube::Error::SerdeError)
}

fn collection<K: Object>(namespace: &str) -> String {
    K::url_path(&(), Some(namespace).filter(|namespace| !namespace.is_empty()))
}

/// The path of an object.
pub fn path_of<K: Object>(key: &ObjectKey) -> String {
    format!("{}/{}", collection::<K>(&key.namespace), key.name)
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, kube::Error> {
    serde_json::to_vec(value).map_err(kube::Error::SerdeError)
}

pub async fn get<K: Object>(client: &Client, key: &ObjectKey) -> Result<K, kube::Error> {
    request(client, Method::GET, &path_of::<K>(key), "", None).await
}

/// Creates the object in the namespace of its metadata.
pub async fn create<K: Object + Serialize>(client: &Client, object: &K) -> Result<K, kube::Error> {
    let namespace = object.meta().namespace.as_deref().unwrap_or_default();
    request(client, Method::POST, &collection::<K>(namespace), "application/json", Some(encode(object)?)).await
}

pub async fn update<K: Object + Serialize>(client: &Client, object: &K) -> Result<K, kube::Error> {
    request(client, Method::PUT, &path_of::<K>(&ObjectKey::of(object)), "application/json", Some(encode(object)?)).await
}

pub async fn update_status<K: Object + Serialize>(client: &Client, object: &K) -> Result<K, kube::Error> {
    update_subresource(client, object, "status").await
}

pub async fn update_subresource<K: Object + Serialize>(
    client: &Client,
    object: &K,
    subresource: &str,
) -> Result<K, kube::Error> {
    let path = format!("{}/{subresource}", path_of::<K>(&ObjectKey::of(object)));
    request(client, Method::PUT, &path, "application/json", Some(encode(object)?)).await
}

/// Patches an object, or one of its subresources if that is not empty.
pub async fn patch<K: Object>(
    client: &Client,
    key: &ObjectKey,
    subresource: &str,
    kind: PatchKind,
    patch: &Value,
) -> Result<K, kube::Error> {
    let mut path = path_of::<K>(key);
    if !subresource.is_empty() {
        path.push('/');
        path.push_str(subresource);
    }
    patch_at(client, &path, kind, patch).await
}

/// Patches whatever is at a path.
pub async fn patch_at<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    kind: PatchKind,
    patch: &Value,
) -> Result<T, kube::Error> {
    let content_type = match kind {
        PatchKind::Json => "application/json-patch+json",
        PatchKind::Merge => "application/merge-patch+json",
        PatchKind::Strategic => "application/strategic-merge-patch+json",
    };
    request(client, Method::PATCH, path, content_type, Some(encode(patch)?)).await
}

pub async fn delete<K: Object>(client: &Client, key: &ObjectKey, deletion: &Deletion<'_>) -> Result<(), kube::Error> {
    delete_at(client, &path_of::<K>(key), deletion).await
}

/// Deletes whatever is at a path.
pub async fn delete_at(client: &Client, path: &str, deletion: &Deletion<'_>) -> Result<(), kube::Error> {
    request::<IgnoredAny>(client, Method::DELETE, path, "application/json", Some(encode(&deletion.body())?))
        .await
        .map(drop)
}
