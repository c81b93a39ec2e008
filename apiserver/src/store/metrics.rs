//! What is counted about the store, for `/metrics` (upstream: `storage/etcd3/metrics`).

use crate::resources::Resources;
use coxswain_storage::Storage;
use coxswain_storage::metrics;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// The store is asked for its size no longer than this.
const SIZE_TIMEOUT: Duration = Duration::from_secs(1);

/// Counts one request to the store, whatever came of it.
pub(super) async fn counted<T, E>(
    operation: &str,
    group: &str,
    resource: &str,
    request: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let begin = Instant::now();
    let result = request.await;
    metrics::record_request(operation, group, resource, result.is_err(), begin.elapsed());
    result
}

/// All of it in Prometheus' text form.
pub async fn render(storage: &dyn Storage, resources: &Resources) -> String {
    let mut out = String::new();
    let name = "apiserver_storage_objects";
    let help = "[STABLE] [DEPRECATED, consider using apiserver_resource_objects instead] Number of stored objects at the time of last check split by kind. In case of a fetching error, the value will be -1. (Deprecated since 1.34.0)";
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n");
    for store in resources.index().stores() {
        let (group, plural) = (&store.hub.group_version.group, &store.hub.plural);
        let resource = if group.is_empty() { plural.to_string() } else { format!("{plural}.{group}") };
        let _ = writeln!(out, "{name}{{resource=\"{resource}\"}} {}", store.cache().len());
    }
    if let Ok(Ok(Some(size))) = tokio::time::timeout(SIZE_TIMEOUT, storage.size()).await {
        let name = "apiserver_storage_size_bytes";
        let help = "[STABLE] Size of the storage database file physically allocated in bytes.";
        let _ =
            write!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name}{{storage_cluster_id=\"etcd-0\"}} {size}\n");
    }
    metrics::render(&mut out);
    out
}
