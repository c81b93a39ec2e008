//! The kubelet's HTTPS server (upstream: `kubelet/server`).

use crate::kubelet::Kubelet;
use std::sync::Arc;

pub async fn start(_kubelet: Arc<Kubelet>) -> Result<u16, String> {
    Err("not yet".into())
}
