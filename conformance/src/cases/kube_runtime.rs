//! What operators written in Rust build on: the runtime of the kube crate (watcher, reflector, controller, finalizer,
//! events, conditions to wait for), with its own transport rather than ours.

use crate::harness::Sandbox;
use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, AttachParams, DeleteParams, DynamicObject, GroupVersionKind, ListParams, LogParams, Patch,
    PatchParams, PostParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::finalizer::{self, Event as Finalize, finalizer};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, Config, ResourceExt};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

const WAIT: Duration = Duration::from_secs(30);
const FINALIZER: &str = "test.example/tidy";

async fn client(s: &Sandbox<'_>) -> Result<Client> {
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(Kubeconfig::read_from(s.kubeconfig())?, &options).await?;
    Ok(Client::try_from(config)?)
}

fn config_map(name: &str, value: &str) -> Result<ConfigMap> {
    Ok(serde_json::from_value(json!({"metadata": {"name": name}, "data": {"k": value}}))?)
}

fn pod(name: &str, script: &str) -> Result<Pod> {
    let image = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1";
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": image, "command": ["sh", "-c", script]}],
        },
    }))?)
}

pub async fn a_watcher_begins_with_what_is_there_and_follows(s: &Sandbox<'_>) -> Result<()> {
    for streaming in [false, true] {
        let api: Api<ConfigMap> = Api::namespaced(client(s).await?, &s.namespace);
        let name = format!("w-{streaming}");
        api.create(&PostParams::default(), &config_map(&name, "1")?).await?;
        let fields = format!("metadata.name={name}");
        let mut config = watcher::Config::default().fields(&fields);
        if streaming {
            config = config.streaming_lists();
        }
        let mut events = watcher(api.clone(), config).boxed();
        let mut seen = Vec::new();
        while seen.len() < 5 {
            let event =
                timeout(WAIT, events.try_next()).await.context("no further event")??.context("the watch ended")?;
            seen.push(match event {
                watcher::Event::Init => "init".to_owned(),
                watcher::Event::InitApply(o) => format!("initial {}", o.data.unwrap_or_default()["k"]),
                watcher::Event::InitDone => {
                    api.patch(&name, &PatchParams::default(), &Patch::Merge(json!({"data": {"k": "2"}}))).await?;
                    api.delete(&name, &DeleteParams::default()).await?;
                    "done".to_owned()
                }
                watcher::Event::Apply(o) => format!("apply {}", o.data.unwrap_or_default()["k"]),
                watcher::Event::Delete(_) => "delete".to_owned(),
            });
        }
        ensure!(seen == ["init", "initial 1", "done", "apply 2", "delete"], "streaming {streaming}: {seen:?}");
    }
    Ok(())
}

pub async fn a_reflector_mirrors_the_cluster(s: &Sandbox<'_>) -> Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client(s).await?, &s.namespace);
    let (store, writer) = reflector::store();
    let changes = watcher(api.clone(), watcher::Config::default()).default_backoff().reflect(writer).applied_objects();
    let following = tokio::spawn(changes.for_each(|_| async {}));
    timeout(WAIT, store.wait_until_ready()).await.context("the reflector never became ready")??;
    for i in 0..20 {
        api.create(&PostParams::default(), &config_map(&format!("r{i}"), "1")?).await?;
    }
    api.delete("r7", &DeleteParams::default()).await?;
    s.eventually("19 mirrored objects", 30, || async {
        let count = store.state().iter().filter(|o| o.name_any().starts_with('r')).count();
        Ok((count == 19).then_some(()))
    })
    .await?;
    following.abort();
    let listed = api.list(&ListParams::default().limit(6)).await?;
    ensure!(listed.items.len() == 6 && listed.metadata.continue_.is_some(), "the list was not cut at 6");
    Ok(())
}

struct Boats {
    client: Client,
    kind: ApiResource,
    reconciled: AtomicUsize,
    tidied: AtomicUsize,
}

/// An operator in miniature: a kind of its own, whose objects own config maps, report in their status, and are tidied up.
pub async fn a_controller_with_a_finalizer_owns_and_tidies(s: &Sandbox<'_>) -> Result<()> {
    let client = client(s).await?;
    let group = format!("{}.example", s.namespace);
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let definition: CustomResourceDefinition = serde_json::from_value(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("dinghies.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced", "names": {"plural": "dinghies", "singular": "dinghy", "kind": "Dinghy"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    }))?;
    let name = definition.name_any();
    definitions.patch(&name, &PatchParams::apply("test"), &Patch::Apply(&definition)).await?;
    let established = await_condition(definitions.clone(), &name, conditions::is_crd_established());
    timeout(WAIT, established).await.context("the definition was never established")??;

    let kind = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(&group, "v1", "Dinghy"), "dinghies");
    let boats: Api<DynamicObject> = Api::namespaced_with(client.clone(), &s.namespace, &kind);
    let owned: Api<ConfigMap> = Api::namespaced(client.clone(), &s.namespace);
    let context = Arc::new(Boats {
        client: client.clone(),
        kind: kind.clone(),
        reconciled: AtomicUsize::new(0),
        tidied: AtomicUsize::new(0),
    });
    let controller = Controller::new_with(boats.clone(), watcher::Config::default(), kind.clone())
        .owns(owned.clone(), watcher::Config::default())
        .run(reconcile, |_, _, _| Action::requeue(Duration::from_millis(200)), context.clone());
    let running = tokio::spawn(controller.for_each(|_| async {}));

    // Upstream, a moment may pass between a definition's being established and its objects' being served.
    let argo = DynamicObject::new("argo", &kind).data(json!({"spec": {"crew": 3}}));
    s.eventually("the new kind", 20, || async { Ok(boats.create(&PostParams::default(), &argo).await.ok()) }).await?;
    let state = |want: &'static str| {
        let boats = boats.clone();
        move || {
            let boats = boats.clone();
            async move { Ok((boats.get("argo").await?.data["status"]["state"] == want).then_some(())) }
        }
    };
    s.eventually("the status", 30, state("crew of 3")).await?;
    boats.patch("argo", &PatchParams::default(), &Patch::Merge(json!({"spec": {"crew": 4}}))).await?;
    s.eventually("the new status", 30, state("crew of 4")).await?;
    // An owned object that somebody deletes comes back.
    owned.delete("argo", &DeleteParams::default()).await?;
    s.eventually("the owned object", 30, || async { Ok(owned.get_opt("argo").await?) }).await?;

    boats.delete("argo", &DeleteParams::default()).await?;
    s.eventually("the object to go", 30, || async { Ok(boats.get_opt("argo").await?.is_none().then_some(())) }).await?;
    ensure!(context.tidied.load(Ordering::SeqCst) > 0, "the finalizer did not run");
    ensure!(context.reconciled.load(Ordering::SeqCst) >= 2, "the controller hardly ran");
    s.eventually("the garbage to go", 30, || async { Ok(owned.get_opt("argo").await?.is_none().then_some(())) })
        .await?;
    running.abort();
    definitions.delete(&name, &DeleteParams::default()).await?;
    Ok(())
}

async fn reconcile(boat: Arc<DynamicObject>, context: Arc<Boats>) -> Result<Action, finalizer::Error<kube::Error>> {
    let namespace = boat.namespace().unwrap_or_default();
    let kind = &context.kind;
    let boats: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), &namespace, kind);
    let owned: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    finalizer(&boats, FINALIZER, boat, |event| async {
        match event {
            Finalize::Apply(boat) => {
                context.reconciled.fetch_add(1, Ordering::SeqCst);
                let name = boat.name_any();
                let owner = json!({
                    "apiVersion": kind.api_version, "kind": kind.kind, "name": name, "uid": boat.uid(), "controller": true,
                });
                let wanted = json!({
                    "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": [owner]},
                    "data": {"crew": boat.data["spec"]["crew"].to_string()},
                });
                let params = PatchParams::apply("boats").force();
                owned.patch(&name, &params, &Patch::Apply(wanted)).await?;
                let status = json!({
                    "apiVersion": kind.api_version, "kind": kind.kind,
                    "status": {"state": format!("crew of {}", boat.data["spec"]["crew"])},
                });
                boats.patch_status(&name, &params, &Patch::Apply(status)).await?;
            }
            Finalize::Cleanup(_) => {
                context.tidied.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok::<_, kube::Error>(Action::await_change())
    })
    .await
}

pub async fn pods_are_awaited_entered_and_read(s: &Sandbox<'_>) -> Result<()> {
    let client = client(s).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &s.namespace);
    pods.create(&PostParams::default(), &pod("sh", "echo started; sleep 300")?).await?;
    let running = await_condition(pods.clone(), "sh", conditions::is_pod_running());
    timeout(Duration::from_secs(60), running).await.context("the pod never ran")??;
    s.eventually("the log", 20, || async {
        Ok((pods.logs("sh", &LogParams::default()).await? == "started\n").then_some(()))
    })
    .await?;
    let command = ["sh", "-c", "echo out; exit 4"];
    let mut attached = pods.exec("sh", command, &AttachParams::default().stderr(false)).await?;
    let mut text = String::new();
    attached.stdout().context("no stdout")?.read_to_string(&mut text).await?;
    let status = attached.take_status().context("no status")?.await.context("the status never came")?;
    attached.join().await?;
    ensure!(text == "out\n", "exec printed {text:?}");
    ensure!(status.reason.as_deref() == Some("NonZeroExitCode"), "exec ended with {status:?}");
    pods.delete("sh", &DeleteParams::default()).await?;
    let uid = String::new();
    timeout(WAIT, await_condition(pods, "sh", conditions::is_deleted(&uid))).await.context("the pod stayed")??;

    let deployments: Api<Deployment> = Api::namespaced(client, &s.namespace);
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "d"},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "d"}},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": pod("x", "sleep 300")?.spec},
        },
    }))?;
    deployments.create(&PostParams::default(), &deployment).await?;
    let done = await_condition(deployments.clone(), "d", conditions::is_deployment_completed());
    timeout(Duration::from_secs(60), done).await.context("the deployment was never complete")??;
    let scale =
        deployments.patch_scale("d", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 0}}))).await?;
    // No replicas are not written down.
    ensure!(scale.spec.is_some_and(|s| s.replicas.unwrap_or_default() == 0), "the scale was not patched");
    Ok(())
}
