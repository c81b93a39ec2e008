//! Lifecycle hooks of containers (upstream: `kubelet/lifecycle/handlers.go`).

use crate::cri::Runtime;
use crate::http_client;
use crate::pod::PodExt;
use crate::probes;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use std::time::Duration;

const HTTP_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Runs a hook to its end. The caller bounds the time.
pub async fn run(
    runtime: &dyn Runtime,
    handler: &LifecycleHandler,
    container: &Container,
    id: &str,
    pod: &Pod,
    pod_ip: &str,
) -> Result<(), String> {
    let place = || format!("for Container {:?} in Pod {:?} failed - error", container.name, pod.printed());
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let said = |error: String, output: String| {
            format!("Exec lifecycle hook ([{}]) {}: {error}, message: {output:?}", command.join(" "), place())
        };
        let answer = runtime.exec_sync(id, &command, Duration::ZERO).await;
        let answer = answer.map_err(|e| said(e.to_string(), String::new()))?;
        if answer.exit_code != 0 {
            let stderr = String::from_utf8_lossy(&answer.stderr).into_owned();
            let error = format!("command '{}' exited with {}: {stderr}", command.join(" "), answer.exit_code);
            return Err(said(error, String::from_utf8_lossy(&answer.stdout).into_owned() + &stderr));
        }
        return Ok(());
    }
    if let Some(action) = &handler.http_get {
        let path = action.path.as_deref().unwrap_or_default();
        let said = |error: String| format!("HTTP lifecycle hook ({path}) {}: {error}", place());
        let request = probes::http_request(action, container, pod_ip).map_err(said)?;
        // Whatever is answered, the hook was reached.
        return http_client::get(&request, HTTP_TIMEOUT).await.map(drop).map_err(said);
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64)).await;
        return Ok(());
    }
    Err("Cannot run handler: invalid handler: neither exec, httpGet nor sleep".to_string())
}
