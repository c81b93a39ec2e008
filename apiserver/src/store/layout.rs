//! How objects lie in the store: under which keys, in which encoding, sealed by whom (upstream: `DefaultStorageFactory`,
//! `SpecialDefaultResourcePrefixes` and the storage configurations of the extension and aggregation APIs).

use coxswain_api::codec::Format;
use coxswain_storage::encryption::Encryption;
use std::sync::Arc;
use std::time::Duration;

/// One for the whole server, made of its flags.
#[derive(Clone)]
pub struct Layout {
    /// `/registry/`: what all keys begin with (`--etcd-prefix`), with the closing slash.
    root: Arc<str>,
    /// The encoding of built-in kinds (`--storage-media-type`).
    pub format: Format,
    /// How long events are kept (`--event-ttl`); nothing else ends by itself.
    pub event_ttl: Duration,
    /// Encryption at rest (`--encryption-provider-config`).
    pub encryption: Option<Arc<Encryption>>,
}

impl Default for Layout {
    fn default() -> Self {
        Self::new("/registry", Format::Json)
    }
}

impl std::fmt::Debug for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Layout({} {:?}{})", self.root, self.format, if self.encryption.is_some() { " sealed" } else { "" })
    }
}

impl Layout {
    pub fn new(prefix: &str, format: Format) -> Self {
        let prefix = prefix.trim_matches('/');
        let root = if prefix.is_empty() { "/".into() } else { format!("/{prefix}/").into() };
        Self { root, format, event_ttl: Duration::from_secs(3600), encryption: None }
    }

    pub fn root(&self) -> &str {
        &self.root
    }

    /// Upstream's key prefix of a resource: the plural for built-in groups, with the historical exceptions; group and
    /// plural for the extension APIs and custom resources.
    pub fn key_prefix(&self, group: &str, plural: &str, custom: bool) -> String {
        let path = match (group, plural) {
            ("", "replicationcontrollers") => "controllers",
            ("", "endpoints") => "services/endpoints",
            ("", "services") => "services/specs",
            ("", "nodes") => "minions",
            ("networking.k8s.io", "ingresses") => "ingress",
            _ => plural,
        };
        let root = &self.root;
        if custom || is_extension(group) { format!("{root}{group}/{path}/") } else { format!("{root}{path}/") }
    }

    /// Custom resources have no other form than JSON; the extension APIs, though built in, are kept in JSON upstream too.
    pub fn format_of(&self, group: &str, custom: bool) -> Format {
        if custom || is_extension(group) { Format::Json } else { self.format }
    }
}

fn is_extension(group: &str) -> bool {
    matches!(group, "apiextensions.k8s.io" | "apiregistration.k8s.io")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_upstreams() {
        let layout = Layout::default();
        for (group, plural, custom, key) in [
            ("", "pods", false, "/registry/pods/"),
            ("", "nodes", false, "/registry/minions/"),
            ("", "services", false, "/registry/services/specs/"),
            ("", "replicationcontrollers", false, "/registry/controllers/"),
            ("networking.k8s.io", "ingresses", false, "/registry/ingress/"),
            ("networking.k8s.io", "ipaddresses", false, "/registry/ipaddresses/"),
            ("apiregistration.k8s.io", "apiservices", false, "/registry/apiregistration.k8s.io/apiservices/"),
            ("example.com", "nodes", true, "/registry/example.com/nodes/"),
        ] {
            assert_eq!(layout.key_prefix(group, plural, custom), key);
        }
        assert_eq!(Layout::new("a/b", Format::Json).key_prefix("", "pods", false), "/a/b/pods/");
        assert_eq!(Layout::new("", Format::Json).root(), "/");
    }
}
