//! Amounts of resources, as integers: CPU in thousandths, the rest in whole units.

use std::collections::BTreeMap;
use std::sync::Arc;

use coxswain_api::quantity::Quantity as Parsed;
use coxswain_client::k8s_openapi::api::core::v1::{Container, Pod};
use coxswain_client::k8s_openapi::apimachinery::pkg::api::resource::Quantity;

pub type List = BTreeMap<String, Quantity>;

/// What a container without a request is taken to need when nodes are scored.
pub const DEFAULT_CPU_MILLI: i64 = 100;
pub const DEFAULT_MEMORY_BYTES: i64 = 200 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    pub cpu_milli: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// Only in what a node offers.
    pub pods: i64,
    /// Extended resources, huge pages and the like, by name.
    pub scalars: Vec<(Arc<str>, i64)>,
}

impl Resources {
    pub fn new(list: Option<&List>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in list.into_iter().flatten() {
            let Ok(parsed) = Parsed::parse(&quantity.0) else { continue };
            *resources.entry(name) = if name == "cpu" { parsed.milli_value() } else { parsed.value() };
        }
        resources
    }

    fn entry(&mut self, name: &str) -> &mut i64 {
        match name {
            "cpu" => &mut self.cpu_milli,
            "memory" => &mut self.memory,
            "ephemeral-storage" => &mut self.ephemeral_storage,
            "pods" => &mut self.pods,
            _ => {
                let at = self.scalars.iter().position(|(n, _)| **n == *name).unwrap_or_else(|| {
                    self.scalars.push((name.into(), 0));
                    self.scalars.len() - 1
                });
                &mut self.scalars[at].1
            }
        }
    }

    pub fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.cpu_milli,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral_storage,
            "pods" => self.pods,
            _ => self.scalars.iter().find(|(n, _)| **n == *name).map_or(0, |(_, v)| *v),
        }
    }

    /// Adds `times` the other amounts.
    pub fn add(&mut self, other: &Self, times: i64) {
        self.cpu_milli += times * other.cpu_milli;
        self.memory += times * other.memory;
        self.ephemeral_storage += times * other.ephemeral_storage;
        self.pods += times * other.pods;
        for (name, value) in &other.scalars {
            *self.entry(name) += times * value;
        }
    }

    pub fn raise_to(&mut self, other: &Self) {
        self.cpu_milli = self.cpu_milli.max(other.cpu_milli);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (name, value) in &other.scalars {
            let own = self.entry(name);
            *own = (*own).max(*value);
        }
    }

    pub fn is_zero(&self) -> bool {
        self.cpu_milli == 0 && self.memory == 0 && self.ephemeral_storage == 0 && self.scalars.is_empty()
    }
}

/// What a pod asks for, and the same with defaults for containers that ask for no CPU or memory.
pub fn of_pod(pod: &Pod) -> (Resources, Resources) {
    (sum(pod, false), sum(pod, true))
}

fn sum(pod: &Pod, with_defaults: bool) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let allocated = |name: &str| {
        let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
        statuses.iter().find(|s| s.name == name)?.allocated_resources.as_ref()
    };
    let of = |container: &Container| {
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        let mut own = Resources::new(requests);
        // A resize that the node has not taken up or given back yet counts with the larger amount.
        own.raise_to(&Resources::new(allocated(&container.name)));
        if with_defaults {
            if requests.is_none_or(|r| !r.contains_key("cpu")) {
                own.cpu_milli = DEFAULT_CPU_MILLI;
            }
            if requests.is_none_or(|r| !r.contains_key("memory")) {
                own.memory = DEFAULT_MEMORY_BYTES;
            }
        }
        own
    };
    let mut total = Resources::default();
    for container in &spec.containers {
        total.add(&of(container), 1);
    }
    // Init containers run one after the other, each beside the sidecars started before it.
    let (mut sidecars, mut peak) = (Resources::default(), Resources::default());
    for container in spec.init_containers.iter().flatten() {
        let own = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&own, 1);
            peak.raise_to(&sidecars);
        } else {
            let mut together = sidecars.clone();
            together.add(&own, 1);
            peak.raise_to(&together);
        }
    }
    total.add(&sidecars, 1);
    total.raise_to(&peak);
    // Requests of the pod as a whole replace those of its containers.
    for (name, quantity) in spec.resources.iter().flat_map(|r| r.requests.iter().flatten()) {
        if let Ok(parsed) = Parsed::parse(&quantity.0) {
            *total.entry(name) = if name == "cpu" { parsed.milli_value() } else { parsed.value() };
        }
    }
    total.add(&Resources::new(spec.overhead.as_ref()), 1);
    total
}
