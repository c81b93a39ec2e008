//! What the API server serves, for the controllers that work on all kinds.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use coxswain_client::objects::{get_as, request};
use coxswain_client::{Client, kube};
use http::Method;
use serde::Deserialize;
use tokio::time::Instant;

/// How long what was found serves.
const CACHE_TTL: Duration = Duration::from_secs(30);
/// All groups with all their resources in one answer, or what the path has otherwise if the server does not know that form.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// A kind at the server's preferred version.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    pub group: String,
    pub version: String,
    pub name: String,
    pub kind: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

impl Resource {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    /// The path of the collection, or of one object where a name is given.
    pub fn path(&self, namespace: &str, name: &str) -> String {
        let mut path = match self.group.as_str() {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        if self.namespaced && !namespace.is_empty() {
            path.push_str("/namespaces/");
            path.push_str(namespace);
        }
        path.push('/');
        path.push_str(&self.name);
        if !name.is_empty() {
            path.push('/');
            path.push_str(name);
        }
        path
    }

    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `NAME.GROUP`, as messages name it; `NAME` alone for the core group.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() { self.name.clone() } else { format!("{}.{}", self.name, self.group) }
    }
}

/// What was found, and the group versions that could not be read.
#[derive(Debug, Default)]
pub struct Found {
    pub resources: Vec<Resource>,
    pub failed: Vec<String>,
}

/// What was found a little while ago, for callers that ask often.
#[derive(Default)]
pub struct Cache(tokio::sync::Mutex<Option<(Instant, Arc<Found>)>>);

impl Cache {
    pub async fn get(&self, client: &Client) -> Result<Arc<Found>, kube::Error> {
        let mut cached = self.0.lock().await;
        if let Some((at, found)) = &*cached
            && at.elapsed() < CACHE_TTL
        {
            return Ok(found.clone());
        }
        let found = Arc::new(discover(client).await?);
        *cached = Some((Instant::now(), found.clone()));
        Ok(found)
    }
}

#[derive(Deserialize)]
struct GroupList {
    #[serde(default)]
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    name: String,
    versions: Vec<GroupVersion>,
    #[serde(rename = "preferredVersion")]
    preferred: Option<GroupVersion>,
}

#[derive(Clone, Deserialize, PartialEq)]
struct GroupVersion {
    version: String,
}

#[derive(Deserialize)]
struct ResourceList {
    #[serde(default)]
    resources: Vec<ResourceEntry>,
}

#[derive(Deserialize)]
struct ResourceEntry {
    name: String,
    kind: String,
    namespaced: bool,
    #[serde(default)]
    verbs: Vec<String>,
}

#[derive(Deserialize)]
struct Aggregated {
    kind: String,
    #[serde(default)]
    items: Vec<AggregatedGroup>,
}

#[derive(Deserialize)]
struct AggregatedGroup {
    #[serde(default)]
    metadata: AggregatedName,
    /// The preferred one comes first.
    #[serde(default)]
    versions: Vec<AggregatedVersion>,
}

/// The core group has no name.
#[derive(Default, Deserialize)]
struct AggregatedName {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct AggregatedVersion {
    version: String,
    #[serde(default)]
    resources: Vec<AggregatedResource>,
    #[serde(default)]
    freshness: String,
}

#[derive(Deserialize)]
struct AggregatedResource {
    resource: String,
    #[serde(rename = "responseKind")]
    kind: Option<AggregatedKind>,
    scope: String,
    #[serde(default)]
    verbs: Vec<String>,
}

#[derive(Deserialize)]
struct AggregatedKind {
    kind: String,
}

/// All resources but subresources, each once, at its group's preferred version if that has it.
pub async fn discover(client: &Client) -> Result<Found, kube::Error> {
    let mut found = Found::default();
    for path in ["/api", "/apis"] {
        let list: Aggregated = get_as(client, path, AGGREGATED).await?;
        if list.kind != "APIGroupDiscoveryList" {
            return discover_by_group(client).await;
        }
        list.items.into_iter().for_each(|group| found.add(group));
    }
    Ok(found)
}

impl Found {
    fn add(&mut self, group: AggregatedGroup) {
        let name = group.metadata.name;
        let mut known = HashSet::new();
        for version in group.versions {
            if version.freshness == "Stale" {
                self.failed.push(format!("{name}/{}", version.version));
            }
            for entry in version.resources {
                let Some(kind) = entry.kind else { continue };
                if known.insert(entry.resource.clone()) {
                    self.resources.push(Resource {
                        group: name.clone(),
                        version: version.version.clone(),
                        name: entry.resource,
                        kind: kind.kind,
                        namespaced: entry.scope == "Namespaced",
                        verbs: entry.verbs,
                    });
                }
            }
        }
    }
}

/// The same from the documents of each group and version.
async fn discover_by_group(client: &Client) -> Result<Found, kube::Error> {
    let mut found = Found::default();
    read(client, &mut found, "", "v1").await?;
    let groups: GroupList = request(client, Method::GET, "/apis", "", None).await?;
    for group in groups.groups {
        let mut versions = group.versions;
        if let Some(preferred) = group.preferred {
            versions.sort_by_key(|version| *version != preferred);
        }
        for version in versions {
            // One group's failure, such as an aggregated server that is down, leaves the others to be used.
            if let Err(error) = read(client, &mut found, &group.name, &version.version).await {
                tracing::debug!(group = group.name, version = version.version, %error, "cannot discover");
                found.failed.push(format!("{}/{}", group.name, version.version));
            }
        }
    }
    Ok(found)
}

async fn read(client: &Client, found: &mut Found, group: &str, version: &str) -> Result<(), kube::Error> {
    let path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    let list: ResourceList = request(client, Method::GET, &path, "", None).await?;
    for entry in list.resources {
        let known = found.resources.iter().any(|resource| resource.group == group && resource.name == entry.name);
        if !known && !entry.name.contains('/') {
            found.resources.push(Resource {
                group: group.to_owned(),
                version: version.to_owned(),
                name: entry.name,
                kind: entry.kind,
                namespaced: entry.namespaced,
                verbs: entry.verbs,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_read_from_the_aggregated_document() {
        let text = r#"{"kind": "APIGroupDiscoveryList", "items": [{
            "metadata": {"name": "fleet.example", "creationTimestamp": null},
            "versions": [
                {"version": "v2", "freshness": "Current", "resources": [{
                    "resource": "boats", "responseKind": {"group": "fleet.example", "version": "v2", "kind": "Boat"},
                    "scope": "Namespaced", "verbs": ["list"],
                    "subresources": [{"subresource": "status", "responseKind": null, "verbs": ["get"]}]
                }]},
                {"version": "v1", "freshness": "Stale", "resources": [
                    {"resource": "boats", "responseKind": {"kind": "Boat"}, "scope": "Namespaced", "verbs": ["get"]},
                    {"resource": "ports", "responseKind": {"kind": "Port"}, "scope": "Cluster", "verbs": ["get"]}
                ]}
            ]
        }]}"#;
        let list: Aggregated = serde_json::from_str(text).unwrap();
        let mut found = Found::default();
        list.items.into_iter().for_each(|group| found.add(group));
        let of = |r: &Resource| (r.name.clone(), r.api_version(), r.kind.clone(), r.namespaced);
        let boat = ("boats".into(), "fleet.example/v2".into(), "Boat".into(), true);
        let port = ("ports".into(), "fleet.example/v1".into(), "Port".into(), false);
        assert_eq!(found.resources.iter().map(of).collect::<Vec<_>>(), [boat, port]);
        assert_eq!(found.failed, ["fleet.example/v1"]);
    }
}
