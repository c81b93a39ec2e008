//! The roles and bindings that every cluster starts with (upstream: `rbac/bootstrappolicy` and `rbac/reconciliation`).
//!
//! They are reconciled at every start: what is missing is added, what an administrator added stays, and an object whose
//! annotation says `autoupdate: "false"` is left alone.

use crate::authentication::MASTERS;
use crate::authorization::rbac::{GROUP, Rule, uncovered};
use crate::objects::Objects;
use crate::request::User;
use coxswain_api::{Value, features};
use futures::StreamExt;
use serde_json::{Map, json};

const TABLE: &str = include_str!("../../../data/rbac.txt");
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// So many objects are written at once: the store commits them together.
const CONCURRENT: usize = 32;

/// The objects of the table, in the order of the table.
pub fn objects() -> Vec<Value> {
    parse(features::is_open)
}

fn parse(is_open: impl Fn(&str) -> bool) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    // What stands behind a gate, if the gate is open.
    let behind_gate = |line: &'static str| match line.strip_prefix('?').and_then(|line| line.split_once(' ')) {
        Some((gate, line)) => is_open(gate).then_some(line),
        None => Some(line),
    };
    let mut is_left_out = false;
    for line in TABLE.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let (indent, line) = line.split_at(line.len() - line.trim_start().len());
        let line = behind_gate(line);
        if indent.is_empty() {
            is_left_out = line.is_none();
        }
        let Some(line) = line.filter(|_| !is_left_out) else { continue };
        if indent.is_empty() {
            all.push(parse_object(line));
            continue;
        }
        let role = all.last_mut().expect("a rule stands under its role");
        if role["rules"].is_null() {
            role["rules"] = json!([]);
        }
        role["rules"].as_array_mut().expect("made above").push(parse_rule(line));
    }
    all
}

/// One of the table's ClusterRoles.
pub fn cluster_role(name: &str) -> Option<Value> {
    objects().into_iter().find(|o| o["kind"] == "ClusterRole" && o["metadata"]["name"] == name)
}

fn parse_rule(line: &str) -> Value {
    let list = |text: &str| -> Vec<String> {
        text.split(',').map(|s| if s == "core" { String::new() } else { s.to_owned() }).collect()
    };
    let fields: Vec<&str> = line.split(' ').collect();
    match fields.as_slice() {
        [verbs, paths] => json!({"verbs": list(verbs), "nonResourceURLs": list(paths)}),
        [verbs, groups, resources] => {
            json!({"verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources)})
        }
        [verbs, groups, resources, names] => json!({"verbs": list(verbs), "apiGroups": list(groups),
            "resources": list(resources), "resourceNames": list(names)}),
        _ => unreachable!("a rule has two to four columns"),
    }
}

fn parse_object(line: &str) -> Value {
    let mut words = line.split(' ');
    let mut word = || words.next().unwrap_or_default();
    let (kind, full_name) = (word(), word());
    // Names may hold slashes only after a namespace, and only namespaced kinds have one.
    let (namespace, name) = match kind {
        "Role" | "RoleBinding" => full_name.split_once('/').expect("a namespaced name"),
        _ => ("", full_name),
    };
    let mut labels = Map::from_iter([("kubernetes.io/bootstrapping".to_owned(), json!("rbac-defaults"))]);
    let mut object = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": kind,
        "metadata": {"name": name, "annotations": {AUTOUPDATE: "true"}},
    });
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    if kind.ends_with("Binding") {
        let _equals = word();
        let (role_kind, role) = word().split_once('/').expect("kind/role");
        object["roleRef"] = json!({"apiGroup": GROUP, "kind": role_kind, "name": role});
        let _colon = word();
        let subjects: Vec<Value> = words.map(parse_subject).collect();
        if !subjects.is_empty() {
            object["subjects"] = json!(subjects);
        }
    } else {
        for mark in words {
            if let Some((key, value)) = mark.strip_prefix('+').and_then(|m| m.split_once('=')) {
                labels.insert(key.to_owned(), json!(value));
            } else if let Some((key, value)) = mark.strip_prefix("agg:").and_then(|m| m.split_once('=')) {
                if object["aggregationRule"].is_null() {
                    object["aggregationRule"] = json!({"clusterRoleSelectors": []});
                }
                let selectors = object["aggregationRule"]["clusterRoleSelectors"].as_array_mut().expect("made above");
                selectors.push(json!({"matchLabels": {key: value}}));
            }
        }
    }
    object["metadata"]["labels"] = Value::Object(labels);
    object
}

fn parse_subject(word: &str) -> Value {
    match word.split_once(':') {
        Some(("SA", rest)) => {
            let (namespace, name) = rest.split_once('/').expect("namespace/name");
            json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
        }
        Some((kind, name)) => json!({"apiGroup": GROUP, "kind": kind, "name": name}),
        None => unreachable!("a subject names its kind"),
    }
}

/// Brings the cluster's roles and bindings up to the table. To be called at every start, once the watch caches are
/// filled and the namespaces `kube-system` and `kube-public` exist.
pub async fn reconcile(objects: &dyn Objects) -> Result<(), String> {
    let table = self::objects();
    let (bindings, roles): (Vec<_>, Vec<_>) =
        table.into_iter().partition(|o| o["kind"].as_str().is_some_and(|k| k.ends_with("Binding")));
    for stage in [roles, bindings] {
        let mut results = futures::stream::iter(stage.into_iter().map(|wanted| reconcile_one(objects, wanted)))
            .buffer_unordered(CONCURRENT);
        while let Some(result) = results.next().await {
            result?;
        }
    }
    Ok(())
}

async fn reconcile_one(objects: &dyn Objects, wanted: Value) -> Result<(), String> {
    let resource = match wanted["kind"].as_str() {
        Some("ClusterRole") => "clusterroles",
        Some("ClusterRoleBinding") => "clusterrolebindings",
        Some("Role") => "roles",
        _ => "rolebindings",
    };
    let namespace = wanted["metadata"]["namespace"].as_str().unwrap_or_default();
    let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
    let base = match namespace {
        "" => format!("/apis/{GROUP}/v1/{resource}"),
        namespace => format!("/apis/{GROUP}/v1/namespaces/{namespace}/{resource}"),
    };
    let one = format!("{base}/{name}");
    // Another server may reconcile at the same time: then look again.
    for _ in 0..5 {
        let present = objects.get_consistent(GROUP, resource, namespace, name).await.map_err(|e| e.message)?;
        let code = match present {
            None => send(objects, "POST", &base, &wanted).await?,
            Some(present) => match merged(&present, &wanted) {
                None => return Ok(()),
                Some(Change::Update(object)) => send(objects, "PUT", &one, &object).await?,
                Some(Change::Replace) => {
                    send(objects, "DELETE", &one, &json!({})).await?;
                    send(objects, "POST", &base, &wanted).await?
                }
            },
        };
        if code != 409 {
            return Ok(());
        }
    }
    Err(format!("{resource} {name} keeps changing"))
}

/// Sends a request as the server itself; a conflict is for the caller to resolve, any other refusal is an error.
async fn send(objects: &dyn Objects, method: &str, path: &str, body: &Value) -> Result<u16, String> {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .header("user-agent", "kube-apiserver")
        .body(bytes::Bytes::from(body.to_string()))
        .map_err(|e| e.to_string())?;
    let server = User { name: "system:apiserver".into(), groups: vec![MASTERS.into()], ..User::default() };
    let response = objects.request(&server, request).await;
    match response.status().as_u16() {
        code @ (200..300 | 404 | 409) => Ok(code),
        code => Err(format!("{method} {path}: {code}: {}", String::from_utf8_lossy(response.body()))),
    }
}

enum Change {
    Update(Value),
    /// A binding's role cannot be changed: it is made anew.
    Replace,
}

/// What has to change of `present`, if anything.
fn merged(present: &Value, wanted: &Value) -> Option<Change> {
    if present["metadata"]["annotations"][AUTOUPDATE] == "false" {
        return None;
    }
    let mut object = present.clone();
    let entries = |map: &Value| map.as_object().cloned().unwrap_or_default();
    for part in ["labels", "annotations"] {
        for (key, value) in entries(&wanted["metadata"][part]) {
            if present["metadata"][part][&key].is_null() {
                object["metadata"][part][key] = value;
            }
        }
    }
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    if wanted["roleRef"].is_object() {
        if present["roleRef"] != wanted["roleRef"] {
            return Some(Change::Replace);
        }
        let mut subjects = list(&present["subjects"]);
        let same = |a: &Value, b: &Value| ["kind", "namespace", "name"].iter().all(|k| a[k] == b[k]);
        for subject in list(&wanted["subjects"]) {
            if !subjects.iter().any(|s| same(s, &subject)) {
                subjects.push(subject);
            }
        }
        if subjects.len() != list(&present["subjects"]).len() {
            object["subjects"] = json!(subjects);
        }
    } else if wanted["aggregationRule"].is_object() {
        // The rules of an aggregated role are the aggregation controller's.
        let mut selectors = list(&present["aggregationRule"]["clusterRoleSelectors"]);
        let before = selectors.len();
        for selector in list(&wanted["aggregationRule"]["clusterRoleSelectors"]) {
            if !selectors.contains(&selector) {
                selectors.push(selector);
            }
        }
        if selectors.len() != before {
            object["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
        }
    } else {
        let (own, needed) = (Rule::of_role(present), list(&wanted["rules"]));
        let missing: Vec<Value> =
            needed.into_iter().filter(|rule| !uncovered(&own, &[Rule::parse(rule)]).is_empty()).collect();
        if !missing.is_empty() {
            let mut rules = list(&present["rules"]);
            rules.extend(missing);
            object["rules"] = json!(rules);
        }
    }
    (object != *present).then_some(Change::Update(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds_whole_objects() {
        let all = objects();
        assert!(all.len() > 100);
        let admin = cluster_role("cluster-admin").unwrap();
        assert_eq!(
            admin["rules"],
            json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
            {"verbs": ["*"], "nonResourceURLs": ["*"]}])
        );
        assert!(cluster_role("view").unwrap()["rules"].is_null());
        let signer = all.iter().find(|o| o["kind"] == "RoleBinding" && o["metadata"]["namespace"] == "kube-public");
        assert_eq!(signer.unwrap()["subjects"][0]["name"], "bootstrap-signer");
    }

    #[test]
    fn what_stands_behind_a_gate_is_there_when_it_is_open() {
        let of = |is_open: bool, name: &str| parse(|_| is_open).into_iter().find(|o| o["metadata"]["name"] == name);
        let rules = |role: Option<Value>| role.unwrap()["rules"].as_array().unwrap().len();
        assert!(of(false, "system:cluster-trust-bundle-discovery").is_none());
        assert_eq!(rules(of(true, "system:cluster-trust-bundle-discovery")), 1);
        assert_eq!(rules(of(false, "system:node")) + 2, rules(of(true, "system:node")));
    }

    #[test]
    fn reconciling_keeps_what_was_added_and_respects_the_annotation() {
        let wanted = cluster_role("system:basic-user").unwrap();
        assert!(merged(&wanted, &wanted).is_none());
        let mut present = wanted.clone();
        present["rules"] = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        let Some(Change::Update(updated)) = merged(&present, &wanted) else { panic!("rules are missing") };
        assert_eq!(updated["rules"].as_array().unwrap().len(), 1 + wanted["rules"].as_array().unwrap().len());
        present["metadata"]["annotations"][AUTOUPDATE] = json!("false");
        assert!(merged(&present, &wanted).is_none());
    }
}
