//! `pods/eviction`: a deletion that a PodDisruptionBudget may refuse (upstream: `EvictionREST` of
//! `pkg/registry/core/pod/storage`).

use super::{is_dry_run, set_condition, success};
use crate::admission::Operation;
use crate::registry::metadata;
use crate::registry::options::DeleteOptions;
use crate::registry::pipeline::{Call, Pipeline};
use crate::registry::resource::Virtual;
use async_trait::async_trait;
use coxswain_api::field::View;
use coxswain_api::managed_fields::{SingleVersion, Write};
use coxswain_api::selector::Selector;
use coxswain_api::status::{Cause, Details};
use coxswain_api::{Status, Value, json, time};
use std::sync::Arc;

const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
/// More evictions than this may not wait for the controller to see them.
const DISRUPTED_PODS_MAX: usize = 2000;

pub(super) struct Evictions;

#[async_trait]
impl Virtual for Evictions {
    async fn create(&self, pipeline: &Pipeline, call: &Call, name: &str, mut eviction: Value) -> Result<Value, Status> {
        if metadata::text(&eviction, "name") != name {
            return Err(Status::bad_request("name in URL does not match name in Eviction object"));
        }
        let options = json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"});
        pipeline.validate_admission(call, Operation::Create, &options, name, Some(&mut eviction), None).await?;
        let given = eviction.get("deleteOptions").filter(|o| !o.is_null());
        let inside = given.and_then(|o| o.get("dryRun")).filter(|list| list.as_array().is_some_and(|l| !l.is_empty()));
        let outside: Vec<&str> = call.query.all("dryRun");
        if let Some(inside) = inside
            && !outside.is_empty()
            && *inside != json!(outside)
        {
            let shown: Vec<&str> = inside.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let [asked, written] = [outside, shown].map(|list| list.join(" "));
            let why = format!("Non-matching dry-run options in request and content: [{asked}] and [{written}]");
            return Err(Status::new(500, "", why));
        }
        let dry_run = is_dry_run(call, given);
        let mut tree = given.cloned().unwrap_or_else(|| json!({}));
        if dry_run {
            tree["dryRun"] = json!(["All"]);
        }
        let mut delete = DeleteOptions::of_tree(&tree)?;
        let pods = call.store();
        let Some(pod) = pods.get(call.namespace(), name).await? else { return Err(call.not_found(name)) };
        let pod = pod.tree();
        if !ignores_budgets(&pod) {
            let budgets = budgets_of(pipeline, call.namespace(), &pod).await?;
            if budgets.len() > 1 {
                let why =
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
                return Err(Status::new(500, "", why));
            }
            if let Some(budget) = budgets.first() {
                let at_its_version = take_from_budget(pipeline, call, name, &pod, budget, dry_run).await?;
                if at_its_version && delete.resource_version.is_none() {
                    delete.resource_version = Some(metadata::text(&pod, "resourceVersion").to_owned());
                }
            }
        }
        if !ignores_budgets(&pod) {
            self.mark(pipeline, call, name, &delete, dry_run).await?;
            // The mark has moved the version: what the precondition was about was checked with it.
            delete.resource_version = None;
        }
        let mut own = call.clone();
        let mut info = (*call.ctx.info).clone();
        info.subresource.clear();
        info.verb = "delete".into();
        own.ctx.info = Arc::new(info);
        pipeline.delete_object(&own, name, &delete).await?;
        Ok(success())
    }
}

impl Evictions {
    /// Says in the pod's status why it goes.
    async fn mark(
        &self,
        pipeline: &Pipeline,
        call: &Call,
        name: &str,
        delete: &DeleteOptions,
        dry_run: bool,
    ) -> Result<(), Status> {
        let mark = |pod: &mut Value| {
            for (wanted, field, what) in
                [(&delete.uid, "uid", "UID"), (&delete.resource_version, "resourceVersion", "ResourceVersion")]
            {
                let present = metadata::text(pod, field);
                if let Some(wanted) = wanted
                    && wanted != present
                {
                    let why = format!(
                        "the {what} in the precondition ({wanted}) does not match the {what} in record ({present}). The \
                         object might have been {}",
                        if field == "uid" { "deleted and then recreated" } else { "modified" }
                    );
                    return Err(Status::conflict("", "Pod", name, &why));
                }
            }
            let condition = json!({
                "type": "DisruptionTarget", "status": "True",
                "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
            });
            set_condition(pod, condition, call.ctx.now);
            Ok(())
        };
        pipeline.change_stored("", "pods", call.namespace(), name, dry_run, mark).await.map(drop)
    }
}

/// A pod that does not run yet, or no longer, disrupts nothing by going.
fn ignores_budgets(pod: &Value) -> bool {
    let phase = View::root(pod).child("status").child("phase");
    matches!(phase.str(), "Succeeded" | "Failed" | "Pending") || metadata::is_deleting(pod)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = View::root(pod).child("status").child("conditions");
    conditions.items().any(|c| c.child("type").str() == "Ready" && c.child("status").str() == "True")
}

async fn budgets_of(pipeline: &Pipeline, namespace: &str, pod: &Value) -> Result<Vec<Arc<Value>>, Status> {
    let Some(store) = pipeline.resources.store("policy", "poddisruptionbudgets") else { return Ok(Vec::new()) };
    // A budget that was just made counts.
    let revision = store.catch_up().await?;
    let labels = pod.pointer("/metadata/labels");
    let snapshot = store.cache().snapshot(revision);
    let own = snapshot.objects.values().filter(|b| b.namespace() == namespace).map(|b| b.tree());
    let own = own.filter(|budget| {
        let selector = Selector::from_label_selector(budget.pointer("/spec/selector"));
        selector.is_ok_and(|s| s.matches_labels(labels))
    });
    Ok(own.collect())
}

/// Takes one disruption from the budget. `true`: the pod goes without one, but only as it is now.
async fn take_from_budget(
    pipeline: &Pipeline,
    call: &Call,
    name: &str,
    pod: &Value,
    budget: &Value,
    dry_run: bool,
) -> Result<bool, Status> {
    let budget_name = metadata::text(budget, "name").to_owned();
    if !is_ready(pod) {
        let number = |field| View::root(budget).child("status").child(field).i64();
        let (current, desired) = (number("currentHealthy"), number("desiredHealthy"));
        let always = View::root(budget).child("spec").child("unhealthyPodEvictionPolicy").str() == "AlwaysAllow";
        if always || (current >= desired && desired > 0) {
            return Ok(true);
        }
    }
    let schema = pipeline.resources.store("policy", "poddisruptionbudgets").map(|s| s.hub.schema.clone());
    let take = |budget: &mut Value| {
        let before = budget.clone();
        decrement(budget, &budget_name, name, call.ctx.now)?;
        if let Some(schema) = &schema {
            let write = Write {
                schema,
                api_version: "policy/v1",
                kind: "PodDisruptionBudget",
                manager: "kube-apiserver",
                subresource: "status",
                reset: None,
                versions: &SingleVersion,
                now: call.ctx.now,
            };
            coxswain_api::codec::canonicalize(budget, schema);
            coxswain_api::managed_fields::update(&write, Some(&before), budget);
        }
        Ok(())
    };
    pipeline.change_stored("policy", "poddisruptionbudgets", call.namespace(), &budget_name, dry_run, take).await?;
    Ok(false)
}

fn refusal(retry_after: i32, cause: String) -> Status {
    Status::new(429, "TooManyRequests", REFUSED).with_details(Details {
        retry_after_seconds: retry_after,
        causes: vec![Cause { reason: "DisruptionBudget".into(), message: cause, ..Cause::default() }],
        ..Details::default()
    })
}

fn decrement(budget: &mut Value, name: &str, pod: &str, now: jiff::Timestamp) -> Result<(), Status> {
    let generation = metadata::number(budget, "generation").unwrap_or(0);
    let view = View::root(budget);
    let status = view.child("status");
    let number = |field| status.child(field).i64();
    if number("observedGeneration") < generation {
        return Err(refusal(10, format!("The disruption budget {name} is still being processed by the server.")));
    }
    let allowed = number("disruptionsAllowed");
    let forbidden = |why| Err(Status::forbidden("policy", "poddisruptionbudget", name, why));
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    if status.child("disruptedPods").len() > DISRUPTED_PODS_MAX {
        return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed == 0 {
        let (current, desired) = (number("currentHealthy"), number("desiredHealthy"));
        let failed = status
            .child("conditions")
            .items()
            .find(|c| c.child("type").str() == "DisruptionAllowed" && c.child("reason").str() == "SyncFailed");
        let cause = match failed {
            Some(condition) => format!(
                "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
                condition.child("message").str()
            ),
            None if current <= desired => {
                format!("The disruption budget {name} needs {desired} healthy pods and has {current} currently")
            }
            None => format!("The disruption budget {name} does not allow evicting pods currently"),
        };
        return Err(refusal(0, cause));
    }
    let observed = number("observedGeneration");
    budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
    if allowed == 1 {
        let condition = json!({
            "type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
            "observedGeneration": observed,
        });
        set_condition(budget, condition, now);
    }
    let disrupted = &mut budget["status"]["disruptedPods"];
    if !disrupted.is_object() {
        *disrupted = json!({});
    }
    disrupted[pod] = time::format_seconds(now).into();
    Ok(())
}
