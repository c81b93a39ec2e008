//! Discovery: which groups, versions and resources there are (upstream: `endpoints/discovery` and its `aggregated`).
//!
//! Every document is made of the table of what is served; the aggregated one, which is large, is kept until that changes.

use crate::resources::{Index, Resources, Served};
use crate::respond::json_line;
use bytes::Bytes;
use coxswain_api::catalogue::{self, GroupVersion, SubresourceType};
use coxswain_api::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::sync::{Arc, Weak};

/// A version of the aggregated document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregated {
    V2,
    V2Beta1,
}

impl Aggregated {
    pub fn content_type(self) -> &'static str {
        match self {
            Aggregated::V2 => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            Aggregated::V2Beta1 => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Aggregated::V2 => "apidiscovery.k8s.io/v2",
            Aggregated::V2Beta1 => "apidiscovery.k8s.io/v2beta1",
        }
    }

    /// The first alternative of an Accept header that asks for either kind of document: `None` is the plain one.
    pub fn wanted(accept: &str) -> Option<Aggregated> {
        for clause in accept.split(',') {
            let has = |param: &str| clause.split(';').any(|p| p.trim() == param);
            let media = clause.split(';').next().unwrap_or_default().trim();
            if !matches!(media, "application/json" | "*/*" | "application/*") {
                continue;
            }
            if has("g=apidiscovery.k8s.io") && has("as=APIGroupDiscoveryList") {
                if has("v=v2") {
                    return Some(Aggregated::V2);
                }
                if has("v=v2beta1") {
                    return Some(Aggregated::V2Beta1);
                }
                continue;
            }
            return None;
        }
        None
    }
}

/// An aggregated document and its entity tag, in quotes.
#[derive(Clone)]
pub struct Document {
    pub bytes: Bytes,
    pub etag: Arc<str>,
}

type Kept = (Weak<Index>, bool, Aggregated, Document);

#[derive(Default)]
pub struct Discovery {
    kept: parking_lot::Mutex<Vec<Kept>>,
}

impl Discovery {
    /// The aggregated document of the core group (`core`) or of all others.
    pub fn aggregated(&self, resources: &Resources, core: bool, form: Aggregated) -> Document {
        let index = resources.index();
        let mut kept = self.kept.lock();
        kept.retain(|(of, ..)| std::ptr::eq(of.as_ptr(), Arc::as_ptr(&index)));
        if let Some((.., document)) = kept.iter().find(|(_, c, f, _)| *c == core && *f == form) {
            return document.clone();
        }
        let items: Vec<Value> = groups(&index)
            .iter()
            .filter(|g| g.name.is_empty() == core)
            .map(|group| {
                let versions: Vec<Value> = group
                    .versions
                    .iter()
                    .map(|version| {
                        let resources: Vec<Value> = of_version(&index, version).map(|s| aggregated_entry(s)).collect();
                        json!({"version": &*version.version, "resources": resources, "freshness": "Current"})
                    })
                    .collect();
                let mut metadata = Map::new();
                if !group.name.is_empty() {
                    metadata.insert("name".into(), group.name.as_ref().into());
                }
                json!({"metadata": metadata, "versions": versions})
            })
            .collect();
        let tree = json!({
            "kind": "APIGroupDiscoveryList", "apiVersion": form.api_version(), "metadata": {}, "items": items,
        });
        let bytes = json_line(&tree);
        let mut etag = String::from("\"");
        for byte in Sha256::digest(&bytes) {
            let _ = write!(etag, "{byte:02X}");
        }
        etag.push('"');
        let document = Document { bytes, etag: etag.into() };
        kept.push((Arc::downgrade(&index), core, form, document.clone()));
        document
    }
}

/// A group as discovery lists it.
struct Group {
    name: Arc<str>,
    versions: Vec<GroupVersion>,
}

/// The served groups: built-in ones in the order of the catalogue, then others by name.
fn groups(index: &Index) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let served = |g: &Arc<str>, v: &Arc<str>| index.versions.contains_key(&(g.clone(), v.clone()));
    for group in &catalogue::builtin().groups {
        let versions: Vec<GroupVersion> = group
            .versions
            .iter()
            .map(|v| v.group_version.clone())
            .filter(|gv| served(&gv.group, &gv.version))
            .collect();
        if !versions.is_empty() {
            groups.push(Group { name: group.name.clone(), versions });
        }
    }
    let mut others: Vec<Group> = Vec::new();
    for (group, version) in index.versions.keys() {
        if groups.iter().any(|g| g.name == *group && g.versions.iter().any(|v| v.version == *version)) {
            continue;
        }
        let version = GroupVersion { group: group.clone(), version: version.clone() };
        if let Some(known) = groups.iter_mut().chain(&mut others).find(|g| g.name == *group) {
            known.versions.push(version);
        } else {
            others.push(Group { name: group.clone(), versions: vec![version] });
        }
    }
    for group in &mut others {
        group.versions.sort_by_key(|v| std::cmp::Reverse(version_priority(&v.version)));
    }
    groups.extend(others);
    groups
}

/// Kubernetes' order of versions: GA before beta before alpha, higher numbers first, other names last
/// (upstream: `version.CompareKubeAwareVersionStrings`).
pub fn version_priority(version: &str) -> (u8, u64, u64, std::cmp::Reverse<String>) {
    let other = || (0, 0, 0, std::cmp::Reverse(version.to_owned()));
    let Some(rest) = version.strip_prefix('v') else { return other() };
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let Ok(major) = rest[..digits].parse::<u64>() else { return other() };
    let tail = &rest[digits..];
    let (kind, minor) = match tail {
        "" => (3, "0"),
        _ if tail.starts_with("beta") => (2, &tail[4..]),
        _ if tail.starts_with("alpha") => (1, &tail[5..]),
        _ => return other(),
    };
    match minor.parse::<u64>() {
        Ok(minor) => (kind, major, minor, std::cmp::Reverse(String::new())),
        Err(_) => other(),
    }
}

/// Every served version, in the order of discovery.
pub fn versions(index: &Index) -> Vec<GroupVersion> {
    groups(index).into_iter().flat_map(|g| g.versions).collect()
}

fn of_version<'a>(index: &'a Index, version: &GroupVersion) -> impl Iterator<Item = &'a Arc<Served>> {
    index.versions.get(&(version.group.clone(), version.version.clone())).into_iter().flat_map(|r| r.values())
}

fn strings(list: &[Box<str>]) -> Vec<&str> {
    list.iter().map(|s| &**s).collect()
}

/// Subresources by name, as paths sort.
fn subresources(served: &Served) -> Vec<&SubresourceType> {
    let mut list: Vec<&SubresourceType> = served.ty.subresources.iter().collect();
    if !served.custom {
        list.sort_by(|a, b| a.name.cmp(&b.name));
    }
    list
}

fn aggregated_entry(served: &Served) -> Value {
    let ty = &served.ty;
    let kind = |version: &GroupVersion, kind: &str| {
        // The group and version of the list itself are left empty.
        let own = *version == ty.group_version;
        let (group, version) = if own { ("", "") } else { (&*version.group, &*version.version) };
        json!({"group": group, "version": version, "kind": kind})
    };
    let mut entry = Map::new();
    entry.insert("resource".into(), (&*ty.plural).into());
    entry.insert("responseKind".into(), kind(&ty.group_version, &ty.kind));
    entry.insert("scope".into(), if ty.namespaced { "Namespaced" } else { "Cluster" }.into());
    entry.insert("singularResource".into(), (&*ty.singular).into());
    entry.insert("verbs".into(), strings(&ty.verbs).into());
    if !ty.short_names.is_empty() {
        entry.insert("shortNames".into(), strings(&ty.short_names).into());
    }
    if !ty.categories.is_empty() {
        entry.insert("categories".into(), strings(&ty.categories).into());
    }
    let subs: Vec<Value> = subresources(served)
        .into_iter()
        .map(|s| json!({"subresource": &*s.name, "responseKind": kind(&s.group_version, &s.kind), "verbs": strings(&s.verbs)}))
        .collect();
    if !subs.is_empty() {
        entry.insert("subresources".into(), subs.into());
    }
    Value::Object(entry)
}

/// `/api`.
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

/// `/apis`.
pub fn group_list(resources: &Resources) -> Value {
    let index = resources.index();
    let groups: Vec<Value> = groups(&index).iter().filter(|g| !g.name.is_empty()).map(group_tree).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn group_tree(group: &Group) -> Value {
    let versions: Vec<Value> =
        group.versions.iter().map(|v| json!({"groupVersion": v.api_version(), "version": &*v.version})).collect();
    json!({"name": &*group.name, "versions": versions, "preferredVersion": versions.first()})
}

/// `/apis/GROUP`.
pub fn group(resources: &Resources, name: &str) -> Option<Value> {
    let index = resources.index();
    let found = groups(&index).into_iter().find(|g| &*g.name == name)?;
    let mut tree = group_tree(&found);
    tree["kind"] = "APIGroup".into();
    tree["apiVersion"] = "v1".into();
    Some(tree)
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
pub fn resource_list(resources: &Resources, group: &str, version: &str) -> Option<Value> {
    let index = resources.index();
    let gv = GroupVersion { group: group.into(), version: version.into() };
    if !index.has_version(group, version) {
        return None;
    }
    let mut list = Vec::new();
    for served in of_version(&index, &gv) {
        let ty = &served.ty;
        let mut entry = Map::new();
        entry.insert("name".into(), (&*ty.plural).into());
        entry.insert("singularName".into(), (&*ty.singular).into());
        entry.insert("namespaced".into(), ty.namespaced.into());
        entry.insert("kind".into(), (&*ty.kind).into());
        entry.insert("verbs".into(), strings(&ty.verbs).into());
        if !ty.short_names.is_empty() {
            entry.insert("shortNames".into(), strings(&ty.short_names).into());
        }
        if !ty.categories.is_empty() {
            entry.insert("categories".into(), strings(&ty.categories).into());
        }
        if !ty.storage_version_hash.is_empty() {
            entry.insert("storageVersionHash".into(), (&*ty.storage_version_hash).into());
        }
        list.push(Value::Object(entry));
        for sub in subresources(served) {
            let mut entry = Map::new();
            entry.insert("name".into(), format!("{}/{}", ty.plural, sub.name).into());
            entry.insert("singularName".into(), "".into());
            entry.insert("namespaced".into(), ty.namespaced.into());
            if sub.group_version != ty.group_version {
                if !sub.group_version.group.is_empty() {
                    entry.insert("group".into(), (&*sub.group_version.group).into());
                }
                entry.insert("version".into(), (&*sub.group_version.version).into());
            }
            entry.insert("kind".into(), (&*sub.kind).into());
            entry.insert("verbs".into(), strings(&sub.verbs).into());
            list.push(Value::Object(entry));
        }
    }
    let mut tree = Map::new();
    tree.insert("kind".into(), "APIResourceList".into());
    if !group.is_empty() {
        tree.insert("apiVersion".into(), "v1".into());
    }
    tree.insert("groupVersion".into(), gv.api_version().into());
    tree.insert("resources".into(), list.into());
    Some(Value::Object(tree))
}

/// The paths of all groups and versions, for the root document.
pub fn paths(resources: &Resources) -> Vec<String> {
    let index = resources.index();
    let mut paths = vec!["/api".to_owned(), "/apis".to_owned(), "/apis/".to_owned()];
    for (group, version) in index.versions.keys() {
        if group.is_empty() {
            paths.push(format!("/api/{version}"));
        } else {
            paths.push(format!("/apis/{group}"));
            paths.push(format!("/apis/{group}/{version}"));
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_kubernetes_orders_them() {
        let mut all = vec!["v1alpha1", "v10", "foo", "v2beta2", "v1", "v2beta10", "bar"];
        all.sort_by_key(|version| std::cmp::Reverse(version_priority(version)));
        assert_eq!(all, ["v10", "v1", "v2beta10", "v2beta2", "v1alpha1", "bar", "foo"]);
    }

    #[test]
    fn the_first_acceptable_form_of_discovery_is_taken() {
        let kubectl = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                       application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(Aggregated::wanted(kubectl), Some(Aggregated::V2));
        assert_eq!(Aggregated::wanted("application/json"), None);
        assert_eq!(Aggregated::wanted(""), None);
    }
}
