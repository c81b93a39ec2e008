//! The size that metrics ask for. Resource metrics come from `metrics.k8s.io`; custom and external ones from their APIs.

use std::collections::HashMap;
use std::sync::Arc;

use coxswain_api::quantity::Quantity;
use coxswain_client::objects::request;
use coxswain_client::{Store, errors};
use http::Method;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ResourceMetricStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use serde::Deserialize;

use super::Scale;
use crate::Context;
use crate::common::slim::SlimPod;
use crate::common::{owners, pods, selector, time};

pub(super) struct Reckoned {
    /// The size with the metric that asked for it, or what all failures together come to.
    pub result: Result<(i32, String), String>,
    /// One for each metric of the specification, empty where it failed.
    pub metrics: Vec<MetricStatus>,
    pub failures: Vec<Failure>,
}

/// Why a metric says nothing.
pub(super) struct Failure {
    pub reason: &'static str,
    pub message: String,
    /// The same, as it appears among the other metrics.
    in_sum: String,
}

#[derive(Deserialize)]
struct PodMetricsList {
    items: Vec<PodMetrics>,
}

#[derive(Deserialize)]
struct PodMetrics {
    metadata: Named,
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    name: String,
    usage: HashMap<String, String>,
}

/// The largest size that any metric asks for.
pub(super) async fn reckon(
    context: &Context,
    store: &Store<SlimPod>,
    autoscaler: &HorizontalPodAutoscaler,
    selector: &str,
    scale: &Scale,
    now: Timestamp,
) -> Reckoned {
    let namespace = owners::namespace(&autoscaler.metadata);
    let specs = autoscaler.spec.metrics.clone().unwrap_or_default();
    let mut metrics = Vec::new();
    let mut best: Option<(i32, String)> = None;
    let mut failures: Vec<Failure> = Vec::new();
    for spec in &specs {
        match of_metric(context, store, namespace, selector, scale, spec, now).await {
            Ok((size, name, status)) => {
                metrics.push(status);
                if best.as_ref().is_none_or(|(largest, _)| size > *largest) {
                    best = Some((size, name));
                }
            }
            Err(failure) => {
                metrics.push(MetricStatus::default());
                failures.push(failure);
            }
        }
    }
    // A metric that fails must not let the others shrink the workload.
    let result = match (best, failures.first()) {
        (Some((size, name)), None) => Ok((size, name)),
        (Some((size, name)), Some(_)) if size >= scale.spec => Ok((size, name)),
        (_, first) => Err(format!(
            "invalid metrics ({} invalid out of {}), first error is: {}",
            failures.len(),
            specs.len(),
            first.map_or("no metrics are given", |failure| failure.in_sum.as_str())
        )),
    };
    Reckoned { result, metrics, failures }
}

async fn of_metric(
    context: &Context,
    store: &Store<SlimPod>,
    namespace: &str,
    selector: &str,
    scale: &Scale,
    spec: &MetricSpec,
    now: Timestamp,
) -> Result<(i32, String, MetricStatus), Failure> {
    let (resource, container, target) = match (&spec.resource, &spec.container_resource) {
        (Some(source), _) => (&source.name, None, &source.target),
        (_, Some(source)) => (&source.name, Some(source.container.as_str()), &source.target),
        _ => return Err(unserved(spec, namespace)),
    };
    let fail = |message: String| {
        let what = if target.average_utilization.is_some() { "utilization" } else { "usage" };
        let message = format!("failed to get {resource} {what}: {message}");
        match container {
            None => Failure {
                reason: "FailedGetResourceMetric",
                in_sum: format!("failed to get {resource} resource metric value: {message}"),
                message,
            },
            Some(container) => Failure {
                reason: "FailedGetContainerResourceMetric",
                in_sum: format!("failed to get {container} container metric value: {message}"),
                message,
            },
        }
    };
    let usage = usage(context, namespace, selector, resource, container)
        .await
        .map_err(|message| fail(format!("unable to get metrics for resource {resource}: {message}")))?;
    let selected = select(store, namespace, selector);
    let view = View::new(context, &selected, &usage, resource, now);
    let size = view.size(target, container, resource, scale.spec).map_err(fail)?;
    let name = match target.average_utilization {
        Some(_) => format!("{resource} resource utilization (percentage of request)"),
        None => format!("{resource} resource"),
    };
    Ok((size.replicas, name, size.status(resource)))
}

/// Metrics that some API of others would have to serve.
fn unserved(spec: &MetricSpec, namespace: &str) -> Failure {
    const CUSTOM: &str =
        "unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered";
    if let Some(source) = &spec.object {
        let (metric, object) = (&source.metric.name, &source.described_object);
        // The order of the last four is upstream's.
        let message = format!("unable to get metric {metric}: {} on {namespace} {}/{CUSTOM}", object.kind, object.name);
        let in_sum = match source.target.average_value {
            Some(_) => format!("failed to get object metric value: failed to get {metric} object metric: {message}"),
            None => format!("failed to get object metric value: {message}"),
        };
        return Failure { reason: "FailedGetObjectMetric", message, in_sum };
    }
    if let Some(source) = &spec.external {
        let metric = &source.metric.name;
        let chosen = source.metric.selector.as_ref().map_or_else(|| "nil".to_owned(), selector::print);
        let message = format!(
            "unable to get external metric {namespace}/{metric}/{chosen}: unable to fetch metrics from external metrics \
             API: the server could not find the requested resource (get {metric}.external.metrics.k8s.io)"
        );
        let why = match source.target.average_value {
            Some(_) => format!("failed to get {metric} external metric"),
            None => format!("failed to get external metric {metric}"),
        };
        let in_sum = format!("failed to get {metric} external metric value: {why}: {message}");
        return Failure { reason: "FailedGetExternalMetric", message, in_sum };
    }
    let metric = spec.pods.as_ref().map_or("", |source| source.metric.name.as_str());
    let message = format!("unable to get metric {metric}: {CUSTOM}");
    Failure { reason: "FailedGetPodsMetric", in_sum: format!("failed to get pods metric value: {message}"), message }
}

/// Usage by pod, in thousandths.
async fn usage(
    context: &Context,
    namespace: &str,
    selector: &str,
    resource: &str,
    container: Option<&str>,
) -> Result<HashMap<String, i64>, String> {
    let encoded: String = selector
        .bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => (byte as char).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect();
    let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={encoded}");
    let list: PodMetricsList = request(&context.client, Method::GET, &path, "", None).await.map_err(|error| {
        let message = if errors::is_not_found(&error) {
            "the server could not find the requested resource (get pods.metrics.k8s.io)".to_owned()
        } else {
            errors::message(&error)
        };
        format!("unable to fetch metrics from resource metrics API: {message}")
    })?;
    if list.items.is_empty() {
        return Err("no metrics returned from resource metrics API".to_owned());
    }
    let sum = |pod: &PodMetrics| -> Option<i64> {
        let containers = pod.containers.iter().filter(|own| container.is_none_or(|name| own.name == name));
        containers
            .map(|own| own.usage.get(resource).and_then(|text| Quantity::parse(text).ok()).map(|q| q.milli_value()))
            .sum()
    };
    Ok(list.items.iter().filter_map(|pod| Some((pod.metadata.name.clone(), sum(pod)?))).collect())
}

/// Pods that a selector in text form matches.
fn select(store: &Store<SlimPod>, namespace: &str, selector: &str) -> Vec<Arc<SlimPod>> {
    let Ok(parsed) = coxswain_api::selector::Selector::parse(selector) else { return Vec::new() };
    let mut selected = store.list_namespace(namespace);
    selected.retain(|pod| {
        let labels = pod.metadata.labels.as_ref();
        parsed.matches(|key| labels.and_then(|labels| labels.get(key)).map(String::as_str))
    });
    selected
}

/// Pods with metrics that count, and those to be made up for.
struct View<'a> {
    pods: &'a [Arc<SlimPod>],
    counted: HashMap<&'a str, i64>,
    unready: Vec<&'a str>,
    missing: Vec<&'a str>,
    tolerance: f64,
}

struct Size {
    replicas: i32,
    utilization: Option<i32>,
    average_milli: i64,
}

impl Size {
    fn status(&self, resource: &str) -> MetricStatus {
        let mut average = Quantity::milli(self.average_milli, coxswain_api::quantity::Format::DecimalSi);
        average.round_up(-3);
        MetricStatus {
            type_: "Resource".to_owned(),
            resource: Some(ResourceMetricStatus {
                name: resource.to_owned(),
                current: MetricValueStatus {
                    average_utilization: self.utilization,
                    average_value: Some(Text(average.to_string())),
                    value: None,
                },
            }),
            ..MetricStatus::default()
        }
    }
}

impl<'a> View<'a> {
    fn new(
        context: &Context,
        pods: &'a [Arc<SlimPod>],
        usage: &HashMap<String, i64>,
        resource: &str,
        now: Timestamp,
    ) -> Self {
        let config = &context.config.hpa;
        let mut view = Self {
            pods,
            counted: HashMap::new(),
            unready: Vec::new(),
            missing: Vec::new(),
            tolerance: config.tolerance,
        };
        for pod in pods {
            let name = owners::name(&pod.metadata);
            if owners::is_deleting(&pod.metadata) || pods::phase(pod) == "Failed" {
                continue;
            }
            let Some(value) = usage.get(name) else {
                if pods::phase(pod) == "Pending" {
                    view.unready.push(name)
                } else {
                    view.missing.push(name)
                }
                continue;
            };
            // A pod that has just started uses more CPU than it will.
            let starting = resource == "cpu" && {
                let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
                let young = started.is_none_or(|started| time::since(started, now) < config.cpu_initialization_period);
                young && !pods::is_ready(pod)
            };
            if starting || pods::phase(pod) == "Pending" {
                view.unready.push(name);
            } else {
                view.counted.insert(name, *value);
            }
        }
        view
    }

    /// Requests of the pods named, in thousandths.
    fn request_of(&self, name: &str, container: Option<&str>, resource: &str) -> Result<i64, String> {
        let pod = self.pods.iter().find(|pod| owners::name(&pod.metadata) == name);
        let containers =
            pod.and_then(|pod| pod.spec.as_ref()).map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let mut total = 0;
        for own in containers.iter().filter(|own| container.is_none_or(|name| own.name == name)) {
            let request = own.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get(resource));
            let request = request
                .and_then(|text| Quantity::parse(&text.0).ok())
                .ok_or_else(|| format!("missing request for {resource} in container {} of Pod {name}", own.name))?;
            total += request.milli_value();
        }
        Ok(total)
    }

    fn size(
        &self,
        target: &MetricTarget,
        container: Option<&str>,
        resource: &str,
        current: i32,
    ) -> Result<Size, String> {
        if self.counted.is_empty() {
            return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
        }
        let target_value = target.average_value.as_ref().and_then(|text| Quantity::parse(&text.0).ok());
        // What each pod should use, and the ratio of what all of them do.
        let wanted = |name: &str| -> Result<i64, String> {
            match (target.average_utilization, &target_value) {
                (Some(_), _) => self.request_of(name, container, resource),
                (None, Some(value)) => Ok(value.milli_value()),
                (None, None) => {
                    Err("invalid resource metric source: neither a utilization target nor a value target was set"
                        .to_owned())
                }
            }
        };
        let fraction = target.average_utilization.map_or(1.0, |percent| f64::from(percent) / 100.0);
        let ratio = |counted: &HashMap<&str, i64>| -> Result<(f64, i64, i64), String> {
            let used: i64 = counted.values().sum();
            let mut asked = 0;
            for name in counted.keys() {
                asked += wanted(name)?;
            }
            if asked == 0 {
                return Err(format!("no request for {resource} is set"));
            }
            Ok((used as f64 / asked as f64 / fraction, used, asked))
        };
        let (first, used, asked) = ratio(&self.counted)?;
        let count = self.counted.len() as i64;
        let size = |replicas: i32| Size {
            replicas,
            utilization: target.average_utilization.map(|_| (used * 100 / asked) as i32),
            average_milli: used / count,
        };
        let within = |ratio: f64| (1.0 - ratio).abs() <= self.tolerance;
        let grows = first > 1.0;
        if self.missing.is_empty() && (self.unready.is_empty() || !grows) {
            if within(first) {
                return Ok(size(current));
            }
            return Ok(size((first * count as f64).ceil() as i32));
        }
        // Pods without metrics are taken for idle when growing and for fully used when shrinking.
        let mut all = self.counted.clone();
        for name in &self.missing {
            let value = if grows { 0 } else { (wanted(name)? as f64 * fraction.max(1.0)) as i64 };
            all.insert(name, value);
        }
        if grows {
            for name in &self.unready {
                all.insert(name, 0);
            }
        }
        let (second, ..) = ratio(&all)?;
        if within(second) || (first < 1.0 && second > 1.0) || (first > 1.0 && second < 1.0) {
            return Ok(size(current));
        }
        let replicas = (second * all.len() as f64).ceil() as i32;
        if (second < 1.0 && replicas > current) || (second > 1.0 && replicas < current) {
            return Ok(size(current));
        }
        Ok(size(replicas))
    }
}
