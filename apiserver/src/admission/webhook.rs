//! Admission by others over HTTPS (upstream: `admission/plugin/webhook`).
//!
//! Mutating webhooks are called one after the other, each seeing what those before it made; validating ones all see the
//! same object. What a webhook may change comes as a JSON patch.

mod client;
mod trust;

use super::cel::{Asked, Variables, conditions_hold};
use super::matching::{
    AskedType, Remembered, access_request, converted, is_exempt, request, restored, rules_match, selectors_match, shown,
};
use super::{Attributes, Operation, Plugin};
use crate::authorization::Authorization;
use crate::objects::Objects;
use async_trait::async_trait;
use base64::Engine;
use client::Client;
use coxswain_api::field::go_quote;
use coxswain_api::{Status, Value};
use serde_json::json;
use std::sync::Arc;

/// `MutatingAdmissionWebhook`
pub struct MutatingAdmissionWebhook {
    caller: Caller,
}

/// `ValidatingAdmissionWebhook`
pub struct ValidatingAdmissionWebhook {
    caller: Caller,
}

impl MutatingAdmissionWebhook {
    pub fn new(objects: Arc<dyn Objects>, authorization: Arc<Authorization>) -> Self {
        Self { caller: Caller::new(objects, authorization, "mutatingwebhookconfigurations") }
    }
}

impl ValidatingAdmissionWebhook {
    pub fn new(objects: Arc<dyn Objects>, authorization: Arc<Authorization>) -> Self {
        Self { caller: Caller::new(objects, authorization, "validatingwebhookconfigurations") }
    }
}

/// Why a webhook was not asked, or did not answer as it should.
enum Failure {
    /// It does not work: `failurePolicy` decides.
    Broken(String),
    /// The request is refused whatever the policy.
    Refused(Status),
}

/// A webhook that a request is for.
struct Hook {
    config: Value,
    /// The type in which it wants to see the objects, where that is not the request's own.
    asked: Option<AskedType>,
}

struct Caller {
    objects: Arc<dyn Objects>,
    authorization: Arc<Authorization>,
    client: Client,
    configurations: Remembered,
}

impl Caller {
    fn new(objects: Arc<dyn Objects>, authorization: Arc<Authorization>, resource: &'static str) -> Self {
        let configurations = Remembered::new(objects.clone(), resource);
        Self { client: Client::new(objects.clone()), objects, authorization, configurations }
    }

    /// The webhooks that the request is for, by the name of their configuration and then in their own order.
    async fn relevant(&self, attributes: &Attributes<'_>) -> Result<Vec<Hook>, Status> {
        let configurations = self.configurations.all();
        let mut hooks = Vec::new();
        if configurations.is_empty() || is_exempt(attributes) {
            return Ok(hooks);
        }
        for configuration in configurations.iter() {
            for hook in configuration["webhooks"].as_array().into_iter().flatten() {
                let Some(asked) = rules_match(&hook["rules"], &hook["matchPolicy"], attributes, &*self.objects) else {
                    continue;
                };
                if selectors_match(hook, attributes, &self.objects).await? {
                    hooks.push(Hook { config: hook.clone(), asked });
                }
            }
        }
        Ok(hooks)
    }

    fn conditions_hold(&self, hook: &Hook, attributes: &Attributes<'_>) -> Result<bool, String> {
        let shown = request(attributes, hook.asked.as_ref());
        let object = converted(attributes.new_object(), attributes, hook.asked.as_ref());
        let old = converted(attributes.old, attributes, hook.asked.as_ref());
        let asked = Asked { authorization: self.authorization.clone(), user: attributes.ctx.user.clone() };
        let mut variables = Variables::new();
        variables.set("object", object.as_deref());
        variables.set("oldObject", old.as_deref());
        variables.set("request", Some(&shown));
        variables.set_authorizer(&asked, access_request(attributes));
        conditions_hold(&hook.config["matchConditions"], &variables)
    }

    /// Asks one webhook; none if its conditions say that it is not for this request.
    async fn ask(&self, hook: &Hook, attributes: &Attributes<'_>) -> Result<Option<Value>, Failure> {
        let Hook { config, asked: ty } = hook;
        if config["matchConditions"].is_array() && !self.conditions_hold(hook, attributes).map_err(Failure::Broken)? {
            return Ok(None);
        }
        let (hook, ty) = (config, ty.as_ref());
        let name = hook["name"].as_str().unwrap_or_default();
        let harmless = matches!(hook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun"));
        if attributes.ctx.dry_run && !harmless {
            let why = format!("admission webhook {} does not support dry run", go_quote(name));
            return Err(Failure::Refused(Status::bad_request(why)));
        }
        let versions = hook["admissionReviewVersions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let known = versions.iter().filter_map(Value::as_str).find(|v| matches!(*v, "v1" | "v1beta1"));
        let version = known.ok_or_else(|| {
            Failure::Broken("webhook does not accept known AdmissionReview versions (v1, v1beta1)".into())
        })?;
        let uid = uuid::Uuid::new_v4().to_string();
        let mut asked = request(attributes, ty);
        asked["uid"] = json!(uid);
        asked["object"] = attributes.new_object().map_or(Value::Null, |o| shown(o, attributes, ty));
        asked["oldObject"] = attributes.old.map_or(Value::Null, |o| shown(o, attributes, ty));
        let api_version = format!("admission.k8s.io/{version}");
        let review = json!({"kind": "AdmissionReview", "apiVersion": api_version, "request": asked});
        let answer = self
            .client
            .post(hook, &review)
            .await
            .map_err(|why| Failure::Broken(format!("failed to call webhook: {why}")))?;
        let response = &answer["response"];
        let invalid = |why: String| Failure::Broken(format!("received invalid webhook response: {why}"));
        if !response.is_object() {
            return Err(Failure::Broken("webhook response was absent".into()));
        }
        if version == "v1" {
            let (kind, got) =
                (answer["kind"].as_str().unwrap_or_default(), answer["apiVersion"].as_str().unwrap_or_default());
            if response["uid"] != uid.as_str() {
                let got = go_quote(response["uid"].as_str().unwrap_or_default());
                return Err(invalid(format!("expected response.uid={}, got {got}", go_quote(&uid))));
            }
            if kind != "AdmissionReview" || got != api_version {
                return Err(invalid(format!(
                    "expected webhook response of {api_version}, Kind=AdmissionReview, got {got}, Kind={kind}"
                )));
            }
        }
        for warning in response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            attributes.ctx.warnings.add(warning);
        }
        if response["allowed"] != true {
            return Err(Failure::Refused(denied(name, &response["status"])));
        }
        Ok(Some(response.clone()))
    }
}

/// What a failure means for the request.
fn outcome(hook: &Hook, failure: Failure) -> Result<(), Status> {
    let hook = &hook.config;
    match failure {
        Failure::Refused(status) => Err(status),
        Failure::Broken(why) => {
            let name = hook["name"].as_str().unwrap_or_default();
            let text = format!("failed calling webhook {}: {why}", go_quote(name));
            if hook["failurePolicy"] == "Ignore" {
                tracing::warn!(%text, "a webhook failed and is ignored");
                return Ok(());
            }
            Err(Status::internal(text))
        }
    }
}

/// The refusal of a webhook (upstream: `webhook/errors.ToStatusErr`).
fn denied(name: &str, status: &Value) -> Status {
    let mut refusal: Status = serde_json::from_value(status.clone()).unwrap_or_else(|_| {
        // Webhooks leave out whatever they like of a Status.
        let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
        let code = status["code"].as_u64().and_then(|c| u16::try_from(c).ok()).unwrap_or_default();
        let mut made = Status::new(code, &text("reason"), text("message"));
        made.details = serde_json::from_value(status["details"].clone()).ok();
        made
    });
    refusal.kind = "Status".into();
    refusal.api_version = "v1".into();
    refusal.status = "Failure".into();
    refusal.code = refusal.code.max(400);
    let by = format!("admission webhook {} denied the request", go_quote(name));
    refusal.message = match (refusal.message.is_empty(), refusal.reason.is_empty()) {
        (false, _) => format!("{by}: {}", refusal.message),
        (true, false) => format!("{by}: {}", refusal.reason),
        (true, true) => format!("{by} without explanation"),
    };
    refusal
}

/// The object as the webhook's patch makes it.
fn patched(
    object: &Value,
    response: &Value,
    attributes: &Attributes<'_>,
    asked: Option<&AskedType>,
) -> Result<Option<Value>, Failure> {
    let Some(encoded) = response["patch"].as_str().filter(|p| !p.is_empty()) else { return Ok(None) };
    if response["patchType"] != "JSONPatch" && !response["patchType"].is_null() {
        let kind = go_quote(response["patchType"].as_str().unwrap_or_default());
        return Err(Failure::Broken(format!("unsupported patch type {kind}")));
    }
    let broken = |why: String| Failure::Broken(why);
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).map_err(|e| broken(e.to_string()))?;
    let patch: Value = serde_json::from_slice(&bytes).map_err(|e| broken(e.to_string()))?;
    if patch.as_array().is_some_and(Vec::is_empty) {
        return Ok(None);
    }
    let object = shown(object, attributes, asked);
    let refused = |why: String| Failure::Refused(Status::internal(why));
    let changed = coxswain_api::patch::json(&object, &patch).map_err(|e| refused(e.message))?;
    let ty = asked.map_or(attributes.resource, |ty| ty);
    let schema = ty.subresource(attributes.subresource).map_or(&ty.schema, |subresource| &subresource.schema);
    let decoded = coxswain_api::codec::json::decode_tree(&changed, schema).map_err(|e| refused(e.to_string()))?;
    Ok(Some(restored(decoded.value, attributes, asked)))
}

#[async_trait]
impl Plugin for MutatingAdmissionWebhook {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    fn handles(&self, _operation: Operation) -> bool {
        true
    }

    async fn admit(&self, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        let hooks = self.caller.relevant(attributes).await?;
        // Those who want to see what later ones changed are asked once more.
        let mut again = Vec::new();
        for (round, index) in (0..hooks.len()).map(|i| (0, i)).chain((0..hooks.len()).map(|i| (1, i))) {
            if round == 1 && !again.contains(&index) {
                continue;
            }
            let hook = &hooks[index];
            let result = match self.caller.ask(hook, attributes).await {
                Ok(Some(response)) => match attributes.new_object() {
                    Some(object) => patched(object, &response, attributes, hook.asked.as_ref()),
                    None => Ok(None),
                },
                Ok(None) => Ok(None),
                Err(failure) => Err(failure),
            };
            match result {
                Ok(Some(changed)) => {
                    let Some(object) = attributes.object.as_deref_mut() else { continue };
                    if round == 0 && *object != changed {
                        let earlier = hooks[..index].iter().enumerate();
                        again.extend(
                            earlier.filter(|(_, h)| h.config["reinvocationPolicy"] == "IfNeeded").map(|(i, _)| i),
                        );
                    }
                    *object = changed;
                }
                Ok(None) => {}
                Err(failure) => outcome(hook, failure)?,
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Plugin for ValidatingAdmissionWebhook {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn handles(&self, _operation: Operation) -> bool {
        true
    }

    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        let hooks = self.caller.relevant(attributes).await?;
        let answers = futures::future::join_all(hooks.iter().map(|hook| self.caller.ask(hook, attributes))).await;
        for (hook, answer) in hooks.iter().zip(answers) {
            if let Err(failure) = answer {
                outcome(hook, failure)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_always_has_a_code_and_a_sentence() {
        let plain = denied("w", &Value::Null);
        assert_eq!(
            (plain.code, plain.message.as_str()),
            (400, "admission webhook \"w\" denied the request without explanation")
        );
        let told = denied("w", &json!({"code": 403, "message": "no", "reason": "Forbidden"}));
        assert_eq!((told.code, told.message.as_str()), (403, "admission webhook \"w\" denied the request: no"));
    }
}
