//! What fields and types are for, in the words of Kubernetes' documentation: the text that `kubectl explain` shows.
//!
//! `data/descriptions.gz` holds it compressed (`data/generate.py` makes it of the documentation in crate k8s-openapi). It is
//! unpacked while documents are made and forgotten afterwards: a server seldom makes any.

use flate2::read::GzDecoder;
use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError, Weak};

const BLOB: &[u8] = include_bytes!("../../data/descriptions.gz");

/// All descriptions. As long as somebody holds it, nobody unpacks again.
pub(super) struct Descriptions {
    texts: Vec<String>,
    types: HashMap<String, Described>,
}

#[derive(Default)]
struct Described {
    itself: Option<usize>,
    fields: HashMap<String, usize>,
}

/// Unpacks the descriptions, unless somebody holds them.
pub(super) fn hold() -> Arc<Descriptions> {
    static HELD: Mutex<Weak<Descriptions>> = Mutex::new(Weak::new());
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.upgrade().unwrap_or_else(|| {
        let unpacked = Arc::new(unpack());
        *held = Arc::downgrade(&unpacked);
        unpacked
    })
}

fn unpack() -> Descriptions {
    let mut text = String::new();
    GzDecoder::new(BLOB).read_to_string(&mut text).expect("the descriptions of this program unpack");
    let mut lines = text.lines();
    let texts = lines.by_ref().take_while(|l| !l.is_empty());
    let texts = texts.map(|l| serde_json::from_str(l).expect("a description is a JSON string")).collect();
    let mut types: HashMap<String, Described> = HashMap::new();
    let mut current = String::new();
    for line in lines {
        let (name, number) = line.trim_start().split_once(' ').unwrap_or((line.trim_start(), ""));
        let number = number.parse().ok();
        if line.starts_with('\t') {
            let described = types.entry(current.clone()).or_default();
            described.fields.extend(number.map(|n| (name.to_owned(), n)));
        } else {
            name.clone_into(&mut current);
            types.entry(current.clone()).or_default().itself = number;
        }
    }
    Descriptions { texts, types }
}

fn key(name: &str) -> &str {
    name.strip_prefix("io.k8s.").unwrap_or(name)
}

/// The description of a type, by its OpenAPI name.
pub(super) fn of_type(name: &str) -> Option<String> {
    let all = hold();
    if let Some(n) = all.types.get(key(name)).and_then(|t| t.itself) {
        return Some(all.texts[n].clone());
    }
    let kind = name.rsplit('.').next()?.strip_suffix("List")?;
    Some(format!("{kind}List is a list of {kind} objects."))
}

/// The description of a field of a type.
pub(super) fn of_field(owner: &str, field: &str) -> Option<String> {
    let all = hold();
    let said = |owner: &str| all.types.get(key(owner)).and_then(|t| t.fields.get(field)).map(|&n| all.texts[n].clone());
    said(owner).or_else(|| {
        // What all kinds and lists have in common need not be said of each.
        let is_list = owner.ends_with("List");
        match field {
            "apiVersion" | "kind" => said("api.core.v1.Pod"),
            "metadata" if is_list => Some("Standard list metadata.".into()),
            "items" if is_list => Some("The objects of the list.".into()),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_types_are_described() {
        let _held = hold();
        assert!(of_type("io.k8s.api.core.v1.Pod").unwrap().starts_with("Pod is a collection of containers"));
        assert!(of_field("io.k8s.api.core.v1.ContainerPort", "hostIP").unwrap().contains("host IP"));
        assert_eq!(of_field("io.k8s.api.core.v1.PodList", "metadata").unwrap(), "Standard list metadata.");
    }
}
