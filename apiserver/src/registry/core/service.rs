//! Service (upstream: `pkg/registry/core/service`).
//!
//! Its cluster IPs and node ports are taken before validation, in [`Hooks::begin`], and given back if the write fails.

mod families;
mod validation;

use crate::registry::allocators::{Taking, release_service};
use crate::registry::pipeline::{Call, Pipeline};
use crate::registry::resource::{Hooks, MetadataChecks, Resource, Taken};
use crate::request::Context;
use async_trait::async_trait;
use coxswain_api::field::{ErrorList, View};
use coxswain_api::{Map, Status, Value, json, names};

pub struct Services;

/// What a service is, read from its spec.
#[derive(Clone, Copy)]
pub(crate) struct Spec<'a>(pub(crate) &'a Value);

impl<'a> Spec<'a> {
    pub(crate) fn field(&self, name: &str) -> Option<&'a Value> {
        self.0.get("spec").and_then(|s| s.get(name)).filter(|v| !v.is_null())
    }
    pub(crate) fn text(&self, name: &str) -> &'a str {
        self.field(name).and_then(Value::as_str).unwrap_or_default()
    }
    pub(crate) fn texts(&self, name: &str) -> Vec<&'a str> {
        self.field(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
    }
    pub(crate) fn number(&self, name: &str) -> i64 {
        self.field(name).and_then(Value::as_i64).unwrap_or(0)
    }
    pub(crate) fn ports(&self) -> &'a [Value] {
        self.field("ports").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }
    pub(crate) fn kind(&self) -> &'a str {
        self.text("type")
    }
    pub(crate) fn is_headless(&self) -> bool {
        self.texts("clusterIPs") == ["None"]
    }
    pub(crate) fn needs_cluster_ip(&self) -> bool {
        matches!(self.kind(), "ClusterIP" | "NodePort" | "LoadBalancer")
    }
    pub(crate) fn needs_node_port(&self) -> bool {
        self.kind() == "NodePort"
            || (self.kind() == "LoadBalancer"
                && self.field("allocateLoadBalancerNodePorts").and_then(Value::as_bool) != Some(false))
    }
    pub(crate) fn has_node_ports(&self) -> bool {
        matches!(self.kind(), "NodePort" | "LoadBalancer")
    }
    pub(crate) fn needs_health_check(&self) -> bool {
        self.kind() == "LoadBalancer" && self.text("externalTrafficPolicy") == "Local"
    }
    pub(crate) fn is_external(&self) -> bool {
        self.has_node_ports() || (self.kind() == "ClusterIP" && !self.texts("externalIPs").is_empty())
    }
    pub(crate) fn node_ports(&self) -> Vec<i64> {
        self.ports().iter().map(node_port).filter(|p| *p != 0).collect()
    }
}

pub(crate) fn node_port(port: &Value) -> i64 {
    port.get("nodePort").and_then(Value::as_i64).unwrap_or(0)
}

pub(crate) fn spec_mut(service: &mut Value) -> &mut Map<String, Value> {
    let spec = &mut service["spec"];
    if !spec.is_object() {
        *spec = json!({});
    }
    spec.as_object_mut().expect("just made")
}

impl Resource for Services {
    fn set_defaults(&self, object: &mut Value) {
        let kind = Spec(object).kind().to_owned();
        let affinity = Spec(object).text("sessionAffinity").to_owned();
        let external = !Spec(object).texts("externalIPs").is_empty();
        let health = Spec(object).kind() == "LoadBalancer";
        let spec = spec_mut(object);
        let is_empty = |v: Option<&Value>| v.is_none_or(|v| v.is_null() || v == "");
        if affinity.is_empty() {
            spec.insert("sessionAffinity".into(), "None".into());
        }
        match affinity.as_str() {
            "ClientIP" => {
                let config = spec.entry("sessionAffinityConfig").or_insert_with(|| json!({}));
                if config.pointer("/clientIP/timeoutSeconds").is_none_or(Value::is_null) {
                    *config = json!({"clientIP": {"timeoutSeconds": 10800}});
                }
            }
            "" | "None" => {
                spec.remove("sessionAffinityConfig");
            }
            _ => {}
        }
        if kind.is_empty() {
            spec.insert("type".into(), "ClusterIP".into());
        }
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if is_empty(port.get("protocol")) {
                port["protocol"] = "TCP".into();
            }
            let unset = port.get("targetPort").is_none_or(|t| t.is_null() || *t == json!(0) || *t == json!(""));
            if unset {
                port["targetPort"] = port.get("port").cloned().unwrap_or_else(|| json!(0));
            }
        }
        let kind = if kind.is_empty() { "ClusterIP" } else { &kind };
        if ((external && kind == "ClusterIP") || matches!(kind, "NodePort" | "LoadBalancer"))
            && is_empty(spec.get("externalTrafficPolicy"))
        {
            spec.insert("externalTrafficPolicy".into(), "Cluster".into());
        }
        if matches!(kind, "NodePort" | "LoadBalancer" | "ClusterIP")
            && spec.get("internalTrafficPolicy").is_none_or(Value::is_null)
        {
            spec.insert("internalTrafficPolicy".into(), "Cluster".into());
        }
        if health && spec.get("allocateLoadBalancerNodePorts").is_none_or(Value::is_null) {
            spec.insert("allocateLoadBalancerNodePorts".into(), true.into());
        }
        let ingress = object.pointer_mut("/status/loadBalancer/ingress").and_then(Value::as_array_mut);
        for address in ingress.into_iter().flatten() {
            if !is_empty(address.get("ip")) && address.get("ipMode").is_none_or(Value::is_null) && health {
                address["ipMode"] = "VIP".into();
            }
        }
    }

    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
    }

    fn prepare_for_update(&self, _ctx: &Context, object: &mut Value, old: &Value, subresource: &str) {
        if subresource.is_empty() {
            families::drop_type_dependent_fields(object, old);
            // The addresses of a load balancer go with it.
            if Spec(object).kind() != "LoadBalancer" {
                object["status"]["loadBalancer"] = json!({});
            }
        }
    }

    /// Names of hosts outside were once given a policy that means nothing for them; it is not shown.
    fn canonicalize(&self, object: &mut Value) {
        if Spec(object).kind() == "ExternalName" {
            spec_mut(object).remove("internalTrafficPolicy");
        }
    }

    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        validation::validate(object, None)
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, old: &Value, subresource: &str) -> ErrorList {
        if subresource == "status" {
            return validation::validate_load_balancer(object, old);
        }
        validation::validate_update(object, old)
    }

    fn warnings(&self, _ctx: &Context, object: &Value, _old: Option<&Value>) -> Vec<String> {
        validation::warnings(object)
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        names::dns1123_label(name, prefix)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: true, whole: false, whole_first: false }
    }

    fn hooks(&self) -> Option<&dyn Hooks> {
        Some(self)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let spec = View::root(object).child("spec");
        vec![
            ("spec.clusterIP", spec.child("clusterIP").str().to_owned()),
            ("spec.type", spec.child("type").str().to_owned()),
        ]
    }

    fn selectable_labels(&self) -> &'static [&'static str] {
        &["spec.clusterIP", "spec.type"]
    }
}

#[async_trait]
impl Hooks for Services {
    async fn begin(
        &self,
        pipeline: &Pipeline,
        call: &Call,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<Box<dyn Taken>, Status> {
        if let Some(old) = old {
            families::patch_allocated_values(object, old);
        }
        families::normalize_cluster_ips(object, old);
        families::init(object, old, &pipeline.network)?;
        let mut taking = Taking::new(pipeline, call);
        taking.cluster_ips(object, old).await?;
        taking.node_ports(object, old).await?;
        taking.health_check_port(object, old).await?;
        Ok(taking.finish())
    }

    async fn after_delete(&self, pipeline: &Pipeline, _call: &Call, object: &Value) {
        release_service(pipeline, object).await;
    }
}
