//! Ownership of `spec.replicas` seen through the scale subresource (upstream: `managedfields/scalehandler.go`).

use super::entries::{Entry, Managed};
use crate::field_set::{PathElement, Set};
use serde_json::Value;

const SCALE: &str = "autoscaling/v1";

fn replicas() -> [PathElement; 2] {
    [PathElement::field("spec"), PathElement::field("replicas")]
}

/// Where each version of a resource keeps the number of replicas; a path of none means that a version keeps none.
pub type Mappings<'a> = &'a [(&'a str, Option<&'a [&'a str]>)];

fn path_in<'a>(mappings: Mappings<'a>, version: &str) -> Option<Option<Vec<PathElement>>> {
    let (_, path) = mappings.iter().find(|(v, _)| *v == version)?;
    Some(path.map(|p| p.iter().map(|name| PathElement::field(name)).collect()))
}

/// The entries of the `Scale`: whoever owns the number of replicas of the object.
pub fn to_scale(parent: Option<&Value>, mappings: Mappings<'_>) -> Result<Option<Value>, String> {
    let managed = Managed::decode(parent.cloned())?;
    let mut out = Managed::default();
    for (id, entry) in managed.entries {
        if let Some(Some(path)) = path_in(mappings, &entry.api_version)
            && entry.set().has(&path)
        {
            let mut set = Set::new();
            set.insert(&replicas());
            let mut scaled = Entry::new(SCALE, set, None);
            scaled.time = entry.time;
            out.entries.insert(id, scaled);
        }
    }
    Ok(out.encode())
}

/// The entries of the object after a write of its `Scale`, which left `scale` as the Scale's entries.
pub fn to_parent(
    parent: Option<&Value>,
    scale: Option<&Value>,
    api_version: &str,
    mappings: Mappings<'_>,
) -> Result<Option<Value>, String> {
    let managed = Managed::decode(parent.cloned())?;
    let mut scaled = Managed::decode(scale.cloned())?;
    let mut out = Managed::default();
    for (id, mut entry) in managed.entries {
        let Some(path) = path_in(mappings, &entry.api_version) else { continue };
        let Some(path) = path.filter(|p| entry.set().has(p)) else {
            out.entries.insert(id, entry);
            continue;
        };
        if scaled.entries.remove(&id).is_none() {
            // Somebody else scaled: the number is theirs now.
            let mut taken = Set::new();
            taken.insert(&path);
            let rest = entry.set().difference(&taken);
            if rest.is_empty() {
                continue;
            }
            entry.replace(rest);
        }
        out.entries.insert(id, entry);
    }
    for (id, entry) in scaled.entries {
        if entry.set().has(&replicas())
            && let Some(Some(path)) = path_in(mappings, api_version)
        {
            let mut set = Set::new();
            set.insert(&path);
            // Upstream keeps no time for what came by way of a scale.
            let owner = Entry::new(api_version, set, None);
            out.entries.insert(id, owner);
        }
    }
    Ok(out.encode())
}
