//! Small requests: read, create, change.

use super::{CONFIG_MAPS, Figure, delete_pods, each, figures_of, make_pods, namespace, pod_path};
use crate::load::{Call, IN_FLIGHT, Server, Settings};
use anyhow::Result;
use http::Method;
use serde_json::json;
use std::sync::Arc;

pub async fn get(server: &Arc<Server>, load: &Settings) -> Result<Vec<Figure>> {
    const PODS: usize = 100;
    make_pods(server, PODS).await?;
    let outcome = server.drive(load.seconds, IN_FLIGHT, |i| Some(Call::get(pod_path(i % PODS as u64)))).await?;
    delete_pods(server, PODS).await?;
    Ok(figures_of(&outcome))
}

pub async fn create(server: &Arc<Server>, load: &Settings) -> Result<Vec<Figure>> {
    namespace(server).await?;
    let text = "x".repeat(1800);
    let outcome = server
        .drive(load.seconds, IN_FLIGHT, move |i| {
            let name = format!("c-{i}");
            let body =
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": text}});
            Some(Call::post(CONFIG_MAPS, body.to_string().into_bytes()))
        })
        .await?;
    // Every request in flight at the end had taken a number that was not answered in time for the count.
    let made = outcome.requests as usize + IN_FLIGHT;
    each(server, made, |i| Call::delete(format!("{CONFIG_MAPS}/c-{i}"))).await?;
    Ok(figures_of(&outcome))
}

pub async fn patch(server: &Arc<Server>, load: &Settings) -> Result<Vec<Figure>> {
    const PODS: usize = 200;
    make_pods(server, PODS).await?;
    let outcome = server
        .drive(load.seconds, IN_FLIGHT, |i| {
            let body = json!({"status": {"message": format!("message {i}")}}).to_string().into_bytes();
            Some(Call {
                method: Method::PATCH,
                body: Some(("application/merge-patch+json", body)),
                ..Call::get(format!("{}/status", pod_path(i % PODS as u64)))
            })
        })
        .await?;
    delete_pods(server, PODS).await?;
    Ok(figures_of(&outcome))
}
