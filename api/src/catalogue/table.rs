//! The built-in catalogue: reads `data/catalogue.tsv` (upstream: the storage providers' tables and the scheme).

use super::{Catalogue, Group, GroupVersion, ResourceType, SubresourceType, Version};
use crate::schema;
use std::sync::{Arc, OnceLock};

const TABLE: &str = include_str!("../../data/catalogue.tsv");

/// Every built-in group, version and resource, those included that are not served by default.
pub fn builtin() -> &'static Catalogue {
    static BUILTIN: OnceLock<Catalogue> = OnceLock::new();
    BUILTIN.get_or_init(|| read(TABLE))
}

fn read(table: &'static str) -> Catalogue {
    let mut groups: Vec<Group> = Vec::new();
    // A resource is shared once all its subresources are known.
    let mut resource: Option<ResourceType> = None;
    let mut served = true;
    for line in table.lines().filter(|l| !l.starts_with('#')) {
        if let Some(rest) = line.strip_prefix('\t') {
            let current = resource.as_mut().expect("a subresource follows its resource");
            current.subresources.push(subresource(rest));
            continue;
        }
        if let Some(done) = resource.take() {
            version_of(&mut groups).resources.push(Arc::new(done));
        }
        let columns: Vec<&'static str> = line.split('\t').collect();
        match columns[..] {
            ["group", name, preferred] => {
                groups.push(Group { name: name.into(), preferred_version: preferred.into(), versions: Vec::new() });
            }
            ["version", version, on] => {
                served = on == "on";
                let group = groups.last_mut().expect("a version follows its group");
                let group_version = GroupVersion { group: group.name.clone(), version: version.into() };
                group.versions.push(Version { group_version, served_by_default: served, resources: Vec::new() });
            }
            _ => resource = Some(read_resource(&version_of(&mut groups).group_version, served, &columns)),
        }
    }
    if let Some(done) = resource {
        version_of(&mut groups).resources.push(Arc::new(done));
    }
    Catalogue { groups }
}

fn version_of(groups: &mut [Group]) -> &mut Version {
    groups.last_mut().and_then(|g| g.versions.last_mut()).expect("a resource follows its version")
}

fn words(text: &'static str) -> Vec<Box<str>> {
    text.split(',').filter(|w| !w.is_empty()).map(Into::into).collect()
}

fn read_resource(at: &GroupVersion, served_by_default: bool, columns: &[&'static str]) -> ResourceType {
    let column = |i: usize| columns.get(i).copied().unwrap_or_default();
    let (storage_group, storage_version) = match column(8).split_once('/') {
        Some((group, version)) => (group.into(), version.into()),
        None => (at.group.clone(), at.version.clone()),
    };
    let kind = column(2);
    ResourceType {
        group_version: at.clone(),
        plural: column(0).into(),
        singular: column(1).into(),
        kind: kind.into(),
        list_kind: format!("{kind}List").into(),
        namespaced: column(3) == "n",
        short_names: words(column(5)),
        categories: words(column(6)),
        verbs: words(column(4)),
        subresources: Vec::new(),
        storage_group,
        storage_version,
        storage_version_hash: column(7).into(),
        served_by_default,
        schema: lookup(&at.group, &at.version, kind),
    }
}

fn subresource(line: &'static str) -> SubresourceType {
    let columns: Vec<&'static str> = line.split('\t').collect();
    let mut gvk = columns[1].split('/');
    let (group, version, kind) =
        (gvk.next().unwrap_or_default(), gvk.next().unwrap_or_default(), gvk.next().unwrap_or_default());
    SubresourceType {
        name: columns[0].into(),
        group_version: GroupVersion { group: group.into(), version: version.into() },
        kind: kind.into(),
        verbs: words(columns[2]),
        schema: lookup(group, version, kind),
    }
}

fn lookup(group: &str, version: &str, kind: &str) -> schema::StructRef {
    match schema::builtin().kind(group, version, kind) {
        Some(found) => found.clone(),
        None => panic!("the catalogue names {group}/{version} {kind}, which the schema table lacks"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_a_resource_agree_on_what_is_stored() {
        let catalogue = builtin();
        let v1 = catalogue.resource("autoscaling", "v1", "horizontalpodautoscalers").unwrap();
        assert_eq!((&*v1.storage_group, &*v1.storage_version), ("autoscaling", "v2"));
        let events = catalogue.resource("events.k8s.io", "v1", "events").unwrap();
        assert_eq!((&*events.storage_group, &*events.storage_version), ("", "v1"));
        assert_eq!(&*catalogue.resource("", "v1", "pods").unwrap().subresource("eviction").unwrap().kind, "Eviction");
        assert!(!catalogue.resource("resource.k8s.io", "v1beta1", "resourceclaims").unwrap().served_by_default);
        assert_eq!(catalogue.groups[1].name.as_ref(), "apiregistration.k8s.io");
    }
}
