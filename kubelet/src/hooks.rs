//! Lifecycle hooks of containers (upstream: `kubelet/lifecycle/handlers.go`).

use crate::cri::Runtime;
use crate::http_client;
use crate::probes;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use std::time::Duration;

/// Runs a hook to its end. The caller bounds the time.
pub async fn run(
    runtime: &dyn Runtime,
    handler: &LifecycleHandler,
    container: &Container,
    id: &str,
    pod_ip: &str,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let answer = runtime.exec_sync(id, &command, Duration::ZERO).await.map_err(|e| e.to_string())?;
        if answer.exit_code != 0 {
            let output =
                String::from_utf8_lossy(&answer.stderr).into_owned() + &String::from_utf8_lossy(&answer.stdout);
            return Err(format!("command '{}' exited with {}: {output}", command.join(" "), answer.exit_code));
        }
        return Ok(());
    }
    if let Some(action) = &handler.http_get {
        let request = probes::http_request(action, container, pod_ip)?;
        let answer = http_client::get(&request, Duration::from_secs(30 * 60)).await?;
        return if (200..400).contains(&answer.status) {
            Ok(())
        } else {
            Err(format!("HTTP hook failed with statuscode: {}", answer.status))
        };
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
        return Ok(());
    }
    Err("invalid handler: neither exec, httpGet nor sleep".to_string())
}
