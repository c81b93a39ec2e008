//! Kubeconfig files: one for each identity, and a context in the user's own (upstream: `client-go/tools/clientcmd`).

use crate::pki::{Leaf, write_private};
use anyhow::{Context, Result};
use base64::Engine;
use serde_json::{Value, json};
use std::path::Path;

/// The kubeconfig of one identity, credentials inside.
pub fn document(server: &str, authority_pem: &str, user: &str, leaf: &Leaf) -> Value {
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "coxswain", "cluster": {
            "server": server, "certificate-authority-data": base64(authority_pem)}}],
        "users": [{"name": user, "user": {
            "client-certificate-data": base64(&leaf.cert_pem), "client-key-data": base64(&leaf.key_pem)}}],
        "contexts": [{"name": "coxswain", "context": {"cluster": "coxswain", "user": user}}],
        "current-context": "coxswain",
    })
}

/// Writes a kubeconfig that only its owner may read.
pub fn write(path: &Path, document: &Value) -> Result<()> {
    write_private(path, serde_yaml_ng::to_string(document)?.as_bytes())
}

/// Puts the cluster, user and context of `document` into the kubeconfig at `path`, replacing those of the same name and
/// leaving all else, the current context included, as it is.
pub fn merge_into(path: &Path, document: &Value) -> Result<()> {
    let mut target: Value = match std::fs::read_to_string(path) {
        Ok(text) => serde_yaml_ng::from_str(&text).with_context(|| format!("reading {}", path.display()))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            json!({"apiVersion": "v1", "kind": "Config", "current-context": "coxswain"})
        }
        Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
    };
    for section in ["clusters", "users", "contexts"] {
        for entry in document[section].as_array().into_iter().flatten() {
            let list = &mut target[section];
            if !list.is_array() {
                *list = json!([]);
            }
            let Some(list) = list.as_array_mut() else { continue };
            list.retain(|old| old["name"] != entry["name"]);
            list.push(entry.clone());
        }
    }
    write(path, &target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_what_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, "current-context: work\ncontexts: [{name: work, context: {cluster: w, user: w}}]\n")
            .unwrap();
        let ours = json!({"contexts": [{"name": "coxswain", "context": {"cluster": "coxswain", "user": "admin"}}]});
        merge_into(&path, &ours).unwrap();
        merge_into(&path, &ours).unwrap();
        let merged: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(merged["current-context"], "work");
        let names: Vec<_> = merged["contexts"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
        assert_eq!(names, ["work", "coxswain"]);
    }
}
