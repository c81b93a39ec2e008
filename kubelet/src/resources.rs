//! Requests, limits and quality of service: from the pod's spec to numbers for cgroups (upstream: `component-helpers/resource`,
//! `kubelet/cm/helpers_linux.go`, `kubelet/qos/policy.go`). Pure arithmetic.

use crate::pod::{self, ContainerRef, PodExt};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

pub type ResourceList = BTreeMap<String, Quantity>;

/// The smallest weight and quota the kernel takes (upstream: `MinShares`, `MinQuotaPeriod`).
pub const CPU_SHARES_MIN: i64 = 2;
pub const CPU_SHARES_MAX: i64 = 262_144;
const CPU_QUOTA_US_MIN: i64 = 1_000;
const OOM_SCORE_GUARANTEED: i64 = -997;
const OOM_SCORE_BEST_EFFORT: i64 = 1000;

/// A quantity in billionths, the finest unit the API knows. Malformed text counts as nothing: the API server has validated it.
pub fn nanos(quantity: &Quantity) -> i128 {
    let text = quantity.0.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let scale: i128 = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => 1_000_000_000,
        "k" => 1_000_000_000_000,
        "M" => 10i128.pow(15),
        "G" => 10i128.pow(18),
        "T" => 10i128.pow(21),
        "P" => 10i128.pow(24),
        "E" => 10i128.pow(27),
        "Ki" => (1i128 << 10) * 1_000_000_000,
        "Mi" => (1i128 << 20) * 1_000_000_000,
        "Gi" => (1i128 << 30) * 1_000_000_000,
        "Ti" => (1i128 << 40) * 1_000_000_000,
        "Pi" => (1i128 << 50) * 1_000_000_000,
        "Ei" => (1i128 << 60) * 1_000_000_000,
        exponent => match exponent[1..].parse::<i32>() {
            Ok(power @ -9..=18) => 10i128.pow((power + 9) as u32),
            _ => return 0,
        },
    };
    let fraction: String = fraction.chars().take(18).collect();
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().unwrap_or(0) };
    let part: i128 = if fraction.is_empty() { 0 } else { fraction.parse().unwrap_or(0) };
    let divisor = 10i128.pow(fraction.len() as u32);
    let total = whole * scale + (part * scale + divisor - 1) / divisor;
    if negative { -total } else { total }
}

/// Rounded up to whole units.
pub fn value(quantity: &Quantity) -> i64 {
    ceil_div(nanos(quantity), 1_000_000_000)
}

/// Rounded up to thousandths.
pub fn milli_value(quantity: &Quantity) -> i64 {
    ceil_div(nanos(quantity), 1_000_000)
}

fn ceil_div(nanos: i128, unit: i128) -> i64 {
    let quotient = nanos.div_euclid(unit) + i128::from(nanos.rem_euclid(unit) != 0);
    quotient.clamp(i64::MIN as i128, i64::MAX as i128) as i64
}

/// `1500` as `1500m`, `2000` as `2`.
pub fn cpu_quantity(milli: i64) -> Quantity {
    Quantity(if milli % 1000 == 0 { (milli / 1000).to_string() } else { format!("{milli}m") })
}

/// Bytes in the largest binary unit that divides them, the canonical form of a binary quantity.
pub fn bytes_quantity(bytes: i64) -> Quantity {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let (mut number, mut unit) = (bytes, 0);
    while number != 0 && number % 1024 == 0 && unit + 1 < UNITS.len() {
        number /= 1024;
        unit += 1;
    }
    Quantity(format!("{number}{}", UNITS[unit]))
}

/// The text of a sum of two quantities of the same resource.
fn quantity_of(resource: &str, nanos: i128) -> Quantity {
    if resource == "cpu" {
        cpu_quantity(ceil_div(nanos, 1_000_000))
    } else {
        bytes_quantity(ceil_div(nanos, 1_000_000_000))
    }
}

pub fn requests(container: &Container) -> Option<&ResourceList> {
    container.resources.as_ref().and_then(|r| r.requests.as_ref())
}

pub fn limits(container: &Container) -> Option<&ResourceList> {
    container.resources.as_ref().and_then(|r| r.limits.as_ref())
}

pub fn request_of(container: &Container, resource: &str) -> Option<i128> {
    requests(container).and_then(|r| r.get(resource)).map(nanos)
}

pub fn limit_of(container: &Container, resource: &str) -> Option<i128> {
    limits(container).and_then(|r| r.get(resource)).map(nanos)
}

/// A container's limit, or the pod's where the container has none of its own.
pub fn effective_limit(pod: &Pod, container: &Container, resource: &str) -> Option<i128> {
    let of_pod = || pod.spec().resources.as_ref()?.limits.as_ref()?.get(resource).map(nanos);
    limit_of(container, resource).filter(|n| *n > 0).or_else(of_pod)
}

type Sums = BTreeMap<String, i128>;

fn add(into: &mut Sums, list: Option<&ResourceList>) {
    for (name, quantity) in list.into_iter().flatten() {
        *into.entry(name.clone()).or_default() += nanos(quantity);
    }
}

fn raise(into: &mut Sums, other: &Sums) {
    for (name, amount) in other {
        let slot = into.entry(name.clone()).or_insert(*amount);
        *slot = (*slot).max(*amount);
    }
}

/// What a pod takes at most at any moment of its life: regular containers and sidecars together, or the peak of initialization,
/// whichever is larger; pod-level resources override; overhead on top.
fn aggregate(
    pod: &Pod,
    list: fn(&Container) -> Option<&ResourceList>,
    pod_level: Option<&ResourceList>,
    overhead_for_absent: bool,
) -> ResourceList {
    let spec = pod.spec();
    let mut total = Sums::new();
    for container in &spec.containers {
        add(&mut total, list(container));
    }
    let mut sidecars = Sums::new();
    let mut peak = Sums::new();
    for container in pod::init_containers(spec) {
        if pod::is_sidecar(container) {
            add(&mut total, list(container));
            add(&mut sidecars, list(container));
            raise(&mut peak, &sidecars);
        } else {
            let mut now = sidecars.clone();
            add(&mut now, list(container));
            raise(&mut peak, &now);
        }
    }
    raise(&mut total, &peak);
    for (name, quantity) in pod_level.into_iter().flatten() {
        total.insert(name.clone(), nanos(quantity));
    }
    for (name, quantity) in spec.overhead.iter().flatten() {
        if overhead_for_absent || total.contains_key(name) {
            *total.entry(name.clone()).or_default() += nanos(quantity);
        }
    }
    total.into_iter().map(|(name, amount)| (name.clone(), quantity_of(&name, amount))).collect()
}

pub fn pod_requests(pod: &Pod) -> ResourceList {
    let pod_level = pod.spec().resources.as_ref().and_then(|r| r.requests.as_ref());
    aggregate(pod, requests, pod_level, true)
}

pub fn pod_limits(pod: &Pod) -> ResourceList {
    let pod_level = pod.spec().resources.as_ref().and_then(|r| r.limits.as_ref());
    // Overhead only extends limits that exist: without a limit there is nothing to extend.
    aggregate(pod, limits, pod_level, false)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    pub fn name(self) -> &'static str {
        match self {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        }
    }
}

/// The class the API server determined at creation, or else computed as it would (upstream: `qos.GetPodQOS`).
pub fn qos_class(pod: &Pod) -> QosClass {
    match pod.status().qos_class.as_deref() {
        Some("Guaranteed") => return QosClass::Guaranteed,
        Some("Burstable") => return QosClass::Burstable,
        Some("BestEffort") => return QosClass::BestEffort,
        _ => {}
    }
    let positive =
        |list: Option<&ResourceList>, name: &str| list.and_then(|l| l.get(name)).map(nanos).filter(|n| *n > 0);
    let all: Vec<ContainerRef<'_>> = pod::long_lived_containers(pod.spec()).collect();
    let pod_level = pod.spec().resources.as_ref();
    let lists: Vec<&ResourceRequirements> = match pod_level {
        Some(resources) if resources.requests.is_some() || resources.limits.is_some() => vec![resources],
        _ => {
            static NONE: std::sync::LazyLock<ResourceRequirements> =
                std::sync::LazyLock::new(ResourceRequirements::default);
            all.iter().map(|c| c.container.resources.as_ref().unwrap_or(&NONE)).collect()
        }
    };
    let mut any = false;
    let mut guaranteed = true;
    for resources in lists {
        for name in ["cpu", "memory"] {
            let (request, limit) =
                (positive(resources.requests.as_ref(), name), positive(resources.limits.as_ref(), name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

pub fn milli_cpu_to_shares(milli: i64) -> i64 {
    if milli == 0 { CPU_SHARES_MIN } else { (milli * 1024 / 1000).clamp(CPU_SHARES_MIN, CPU_SHARES_MAX) }
}

/// Zero means no quota.
pub fn milli_cpu_to_quota(milli: i64, period_us: i64) -> i64 {
    if milli == 0 { 0 } else { (milli * period_us / 1000).max(CPU_QUOTA_US_MIN) }
}

/// cgroup v2 weighs CPUs from 1 to 10,000 where v1 has shares. The curve is the one runtimes use now: 1024 shares are a weight of 100.
pub fn shares_to_weight(shares: i64) -> i64 {
    if shares <= CPU_SHARES_MIN {
        return 1;
    }
    if shares >= CPU_SHARES_MAX {
        return 10_000;
    }
    let l = (shares as f64).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as i64
}

/// How readily the kernel kills a container's processes when memory runs out (upstream: `GetContainerOOMScoreAdjust`).
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    if pod.spec().priority.is_some_and(|p| p >= 2_000_001_000) || pod::is_static(pod) && pod::is_critical(pod) {
        return OOM_SCORE_GUARANTEED;
    }
    match qos_class(pod) {
        QosClass::Guaranteed => OOM_SCORE_GUARANTEED,
        QosClass::BestEffort => OOM_SCORE_BEST_EFFORT,
        QosClass::Burstable => {
            let request = (request_of(container, "memory").unwrap_or(0) / 1_000_000_000) as i64;
            let mut score = 1000 - 1000 * request / memory_capacity.max(1);
            if pod::is_sidecar(container) {
                // A sidecar must not be killed before the containers it serves.
                let others =
                    pod.spec().containers.iter().map(|c| (request_of(c, "memory").unwrap_or(0) / 1_000_000_000) as i64);
                if let Some(smallest) = others.min() {
                    score = score.min(1000 - 1000 * smallest / memory_capacity.max(1));
                }
            }
            if score < 1000 + OOM_SCORE_GUARANTEED {
                return 1000 + OOM_SCORE_GUARANTEED;
            }
            if score == OOM_SCORE_BEST_EFFORT { score - 1 } else { score }
        }
    }
}

/// Limits of a cgroup; `None` leaves the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupLimits {
    pub cpu_shares: Option<i64>,
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: i64,
    pub memory_bytes: Option<i64>,
    pub pids: Option<i64>,
}

impl CgroupLimits {
    /// Of each limit the wider one.
    pub fn widened(&self, other: &Self) -> Self {
        // No quota is the widest, and zero means none.
        let quota = match (self.cpu_quota_us, other.cpu_quota_us) {
            (Some(a), Some(b)) if a > 0 && b > 0 => Some(a.max(b)),
            (None, _) | (_, None) => None,
            _ => Some(0),
        };
        CgroupLimits {
            cpu_shares: self.cpu_shares.max(other.cpu_shares),
            cpu_quota_us: quota,
            memory_bytes: self.memory_bytes.zip(other.memory_bytes).map(|(a, b)| a.max(b)),
            ..self.clone()
        }
    }
}

/// Limits of the cgroup around a pod's containers (upstream: `ResourceConfigForPod`).
pub fn pod_cgroup_limits(pod: &Pod, enforce_quota: bool, period_us: i64, pids: i64) -> CgroupLimits {
    let (requests, limits) = (pod_requests(pod), pod_limits(pod));
    let milli = |list: &ResourceList| list.get("cpu").map(milli_value).unwrap_or(0);
    let memory = limits.get("memory").map(value).unwrap_or(0);
    let pod_level = pod.spec().resources.as_ref().and_then(|r| r.limits.as_ref());
    let declared = |name: &str| {
        pod_level.is_some_and(|l| l.contains_key(name))
            || pod::long_lived_containers(pod.spec()).all(|c| limit_of(c.container, name).is_some_and(|n| n > 0))
    };
    let mut result = CgroupLimits { cpu_period_us: period_us, pids: (pids > 0).then_some(pids), ..Default::default() };
    let qos = qos_class(pod);
    result.cpu_shares =
        Some(if qos == QosClass::BestEffort { CPU_SHARES_MIN } else { milli_cpu_to_shares(milli(&requests)) });
    if qos != QosClass::BestEffort {
        if enforce_quota && declared("cpu") {
            result.cpu_quota_us = Some(milli_cpu_to_quota(milli(&limits), period_us));
        }
        if declared("memory") && memory > 0 {
            result.memory_bytes = Some(memory);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_round_up() {
        let q = |s: &str| Quantity(s.into());
        assert_eq!(milli_value(&q("100m")), 100);
        assert_eq!(milli_value(&q("0.5")), 500);
        assert_eq!(milli_value(&q("1n")), 1);
        assert_eq!(value(&q("1.5Gi")), 3 << 29);
        assert_eq!(value(&q("1e3")), 1000);
        assert_eq!(value(&q("-1")), -1);
        assert_eq!(bytes_quantity(64 << 20).0, "64Mi");
        assert_eq!(bytes_quantity(1000).0, "1000");
        assert_eq!(cpu_quantity(1500).0, "1500m");
    }

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_pod_requests_the_peak_of_its_life() {
        let pod = pod(serde_json::json!({
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "init", "resources": {"requests": {"cpu": "2", "memory": "1Mi"}}}],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "500m"}}}],
            "overhead": {"memory": "1Mi"}}));
        let requests = pod_requests(&pod);
        assert_eq!((requests["cpu"].0.as_str(), requests["memory"].0.as_str()), ("2100m", "2Mi"));
    }

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        let class = |resources: serde_json::Value| {
            qos_class(&pod(serde_json::json!({"containers": [{"name": "a", "resources": resources}]})))
        };
        assert_eq!(class(serde_json::json!({})), QosClass::BestEffort);
        assert_eq!(class(serde_json::json!({"requests": {"cpu": "1"}})), QosClass::Burstable);
        assert_eq!(class(serde_json::json!({"limits": {"cpu": "1", "memory": "1Mi"}})), QosClass::Guaranteed);
        assert_eq!(
            class(serde_json::json!({"limits": {"cpu": "1", "memory": "1Mi"}, "requests": {"cpu": "500m"}})),
            QosClass::Burstable
        );
    }

    #[test]
    fn cpu_weights_follow_the_curve_of_runtimes() {
        assert_eq!((shares_to_weight(2), shares_to_weight(1024), shares_to_weight(262_144)), (1, 100, 10_000));
    }
}
