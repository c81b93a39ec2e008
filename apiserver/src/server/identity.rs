//! The identity of this server among those of the cluster: a Lease in kube-system that it renews, so that others know which
//! servers there are (upstream: `APIServerIdentity`, `pkg/controlplane/controller/apiserverleasegc`). Leases of servers that
//! have long gone are removed by whichever server looks next.

use super::bootstrap::send;
use crate::objects::Objects;
use coxswain_api::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

const RENEW: Duration = Duration::from_secs(10);
const LEASE_SECONDS: i64 = 3_600;
const COLLECT: Duration = Duration::from_secs(3_600);
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
const LABEL: &str = "apiserver.kubernetes.io/identity";

/// The name of the Lease: the same whenever a server starts on this host.
pub fn name(hostname: &str) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let hash = Sha256::digest(hostname.as_bytes());
    let (mut text, mut bits, mut count) = (String::from("apiserver-"), 0_u32, 0);
    for byte in &hash[..16] {
        bits = bits << 8 | u32::from(*byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            text.push(ALPHABET[(bits >> count) as usize & 31] as char);
        }
    }
    text.push(ALPHABET[(bits << (5 - count)) as usize & 31] as char);
    text
}

/// Renews the Lease, and collects those that nobody renews, until the server ends.
pub(super) async fn run(objects: Arc<dyn Objects>, hostname: String, mut shutdown: tokio::sync::watch::Receiver<bool>) {
    let name = name(&hostname);
    let holder = format!("{name}_{}", uuid::Uuid::new_v4());
    let mut collected: Option<tokio::time::Instant> = None;
    loop {
        if let Err(why) = renew(&*objects, &name, &holder, &hostname).await {
            tracing::debug!(%why, "the lease of this server's identity could not be renewed");
        }
        if collected.is_none_or(|at| at.elapsed() > COLLECT) {
            match collect(&*objects).await {
                Ok(()) => collected = Some(tokio::time::Instant::now()),
                Err(why) => tracing::debug!(%why, "leases of API servers that are gone could not be removed"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RENEW) => {}
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
    }
}

async fn renew(objects: &dyn Objects, name: &str, holder: &str, hostname: &str) -> Result<(), String> {
    let now = format!("{:.6}", jiff::Timestamp::now());
    let path = format!("{LEASES}/{name}");
    let (code, mut lease) = send(objects, "GET", &path, None).await?;
    let spec = json!({"holderIdentity": holder, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now});
    let labels = json!({LABEL: "kube-apiserver", "kubernetes.io/hostname": hostname});
    let (method, path) = if code == 404 {
        lease = json!({
            "kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
            "metadata": {"name": name, "namespace": "kube-system", "labels": labels}, "spec": spec,
        });
        ("POST", LEASES)
    } else {
        if let Some(old) = lease["spec"].as_object_mut() {
            for (field, value) in spec.as_object().into_iter().flatten() {
                old.insert(field.clone(), value.clone());
            }
        }
        lease["metadata"]["labels"] = labels;
        ("PUT", path.as_str())
    };
    match send(objects, method, path, Some(&lease)).await? {
        (200 | 201 | 409, _) => Ok(()),
        (code, answer) => Err(format!("{code} {}", answer["message"])),
    }
}

async fn collect(objects: &dyn Objects) -> Result<(), String> {
    let path = format!("{LEASES}?labelSelector={LABEL}%3Dkube-apiserver");
    let (code, list) = send(objects, "GET", &path, None).await?;
    if code != 200 {
        return Err(format!("{code} {}", list["message"]));
    }
    let now = jiff::Timestamp::now();
    for lease in list["items"].as_array().into_iter().flatten().filter(|lease| expired(lease, now)) {
        let metadata = &lease["metadata"];
        let name = metadata["name"].as_str().unwrap_or_default();
        let precondition =
            json!({"preconditions": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}});
        let (code, answer) = send(objects, "DELETE", &format!("{LEASES}/{name}"), Some(&precondition)).await?;
        // Another server was first, or the one that was gone is back.
        if !matches!(code, 200 | 202 | 404 | 409) {
            return Err(format!("{code} {}", answer["message"]));
        }
    }
    Ok(())
}

/// A Lease that does not say until when it holds holds no longer.
fn expired(lease: &Value, now: jiff::Timestamp) -> bool {
    let renewed =
        lease.pointer("/spec/renewTime").and_then(Value::as_str).and_then(|t| t.parse::<jiff::Timestamp>().ok());
    let seconds = lease.pointer("/spec/leaseDurationSeconds").and_then(Value::as_i64);
    match (renewed, seconds) {
        (Some(renewed), Some(seconds)) => renewed.as_second().saturating_add(seconds) < now.as_second(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_a_hash_of_the_host() {
        // Of 128 bits, in base 32 without padding.
        let name = name("master-1");
        assert_eq!(name.len(), "apiserver-".len() + 26);
        assert_ne!(name, super::name("master-2"));
        // The first test vector of SHA-256 begins with ba7816bf 8f01cfea 414140de 5dae2223.
        assert_eq!(super::name("abc"), "apiserver-xj4bnp4pahh6uqkbidpf3lrcem");
    }

    #[test]
    fn only_leases_that_were_not_renewed_are_expired() {
        let now: jiff::Timestamp = "2026-01-01T02:00:00Z".parse().unwrap();
        let lease = |renewed: &str| json!({"spec": {"renewTime": renewed, "leaseDurationSeconds": 3_600}});
        assert!(!expired(&lease("2026-01-01T01:30:00.000000Z"), now));
        assert!(expired(&lease("2026-01-01T00:30:00.000000Z"), now));
        assert!(expired(&json!({"spec": {}}), now));
    }
}
