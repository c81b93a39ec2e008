//! What a node has granted to its pods, and what of it is in force (upstream: `kubelet/allocation`, the actuated state of `kuberuntime`).
//!
//! A pod gets what it asks for when it is admitted. A later wish for more or less is first granted (or not, while the old grant holds),
//! then carried out. Pure: the pod's worker asks, and carries out.

use crate::pod::{self, ContainerRef, PodExt};
use crate::resources;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The resources that can be changed while a pod runs.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// What was granted, where the spec now asks for something else.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allocation {
    pod: Option<ResourceRequirements>,
    containers: BTreeMap<String, ResourceRequirements>,
}

impl Allocation {
    pub fn of(pod: &Pod) -> Self {
        let own = |c: ContainerRef<'_>| (c.container.name.clone(), c.container.resources.clone().unwrap_or_default());
        Allocation {
            pod: pod.spec().resources.clone(),
            containers: pod::long_lived_containers(pod.spec()).map(own).collect(),
        }
    }

    /// What an earlier kubelet had granted, from the status it left: a resize that was pending then is pending still.
    pub fn recovered(pod: &Pod) -> Option<Self> {
        pod::condition(pod.status(), "PodResizePending")?;
        let mut result = Allocation::of(pod);
        let status = pod.status();
        let lists = [&status.init_container_statuses, &status.container_statuses];
        for told in lists.into_iter().flat_map(|l| l.iter().flatten()) {
            let (Some(slot), Some(in_force)) = (result.containers.get_mut(&told.name), &told.resources) else {
                continue;
            };
            slot.limits = in_force.limits.clone();
            slot.requests = told.allocated_resources.clone().or_else(|| in_force.requests.clone());
        }
        Some(result)
    }

    /// Whether the pod asks for just this.
    pub fn is_asked_by(&self, pod: &Pod) -> bool {
        same(self.pod.as_ref(), pod.spec().resources.as_ref())
            && pod::long_lived_containers(pod.spec()).all(|c| {
                self.containers
                    .get(&c.container.name)
                    .is_none_or(|granted| same(Some(granted), c.container.resources.as_ref()))
            })
    }

    /// The pod with what it was granted in place of what it asks for.
    pub fn apply(&self, pod: &Pod) -> Pod {
        let mut pod = pod.clone();
        if let Some(spec) = &mut pod.spec {
            spec.resources = self.pod.clone();
            for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
                if let Some(granted) = self.containers.get(&container.name) {
                    container.resources = Some(granted.clone());
                }
            }
        }
        pod
    }
}

/// The same amounts, however they are written.
fn same(a: Option<&ResourceRequirements>, b: Option<&ResourceRequirements>) -> bool {
    type List = Option<BTreeMap<String, Quantity>>;
    let lists = |r: Option<&ResourceRequirements>, of: fn(&ResourceRequirements) -> &List| -> BTreeMap<String, i128> {
        let list = r.map(of).into_iter().flatten().flatten();
        list.map(|(name, amount)| (name.clone(), resources::nanos(amount))).collect()
    };
    lists(a, |r| &r.requests) == lists(b, |r| &r.requests) && lists(a, |r| &r.limits) == lists(b, |r| &r.limits)
}

/// CPU in thousandths, memory in bytes; zero where nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    pub cpu_request: i64,
    pub cpu_limit: i64,
    pub memory_request: i64,
    pub memory_limit: i64,
}

impl Amounts {
    fn new(own: &ResourceRequirements, of_pod: Option<&ResourceRequirements>) -> Self {
        fn get<'a>(list: Option<&'a BTreeMap<String, Quantity>>, name: &str) -> Option<&'a Quantity> {
            list.and_then(|l| l.get(name)).filter(|q| resources::nanos(q) > 0)
        }
        let request = |name: &str| get(own.requests.as_ref(), name);
        // A container without a limit of its own is limited by the pod's.
        let limit =
            |name: &str| get(own.limits.as_ref(), name).or_else(|| get(of_pod.and_then(|p| p.limits.as_ref()), name));
        Amounts {
            cpu_request: request("cpu").map_or(0, resources::milli_value),
            cpu_limit: limit("cpu").map_or(0, resources::milli_value),
            memory_request: request("memory").map_or(0, resources::value),
            memory_limit: limit("memory").map_or(0, resources::value),
        }
    }

    fn wanted(pod: &Pod, container: &Container) -> Self {
        let none = ResourceRequirements::default();
        Amounts::new(container.resources.as_ref().unwrap_or(&none), pod.spec().resources.as_ref())
    }

    fn of(&self, resource: &str) -> (i64, i64) {
        if resource == "cpu" { (self.cpu_request, self.cpu_limit) } else { (self.memory_request, self.memory_limit) }
    }
}

/// What has to be done about a running container for it to have what was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    None,
    InPlace,
    Restart,
}

/// What is in force.
#[derive(Default)]
pub struct Actuated {
    containers: HashMap<String, InForce>,
    /// The pod's own resources; the outer option is empty before they are known.
    pod: Option<Option<ResourceRequirements>>,
}

struct InForce {
    id: String,
    amounts: Amounts,
    resources: ResourceRequirements,
}

impl Actuated {
    /// Of containers that an earlier kubelet started nothing is known; they are taken to have what was granted.
    pub fn learn<'a>(&mut self, pod: &Pod, running: impl Iterator<Item = (ContainerRef<'a>, &'a str)>) {
        self.pod.get_or_insert_with(|| pod.spec().resources.clone());
        for (reference, id) in running {
            if self.containers.get(&reference.container.name).is_none_or(|known| known.id != id) {
                self.set_container(pod, reference.container, id);
            }
        }
    }

    pub fn set_container(&mut self, pod: &Pod, container: &Container, id: &str) {
        let in_force = InForce {
            id: id.into(),
            amounts: Amounts::wanted(pod, container),
            resources: container.resources.clone().unwrap_or_default(),
        };
        self.containers.insert(container.name.clone(), in_force);
    }

    pub fn set_pod(&mut self, pod: &Pod) {
        self.pod = Some(pod.spec().resources.clone());
    }

    pub fn pod_differs(&self, pod: &Pod) -> bool {
        self.pod.as_ref().is_some_and(|known| !same(known.as_ref(), pod.spec().resources.as_ref()))
    }

    /// The amounts before and after, if they differ.
    pub fn amounts(&self, pod: &Pod, container: &Container, id: &str) -> Option<(Amounts, Amounts)> {
        let known = self.containers.get(&container.name).filter(|known| known.id == id)?;
        let wanted = Amounts::wanted(pod, container);
        (known.amounts != wanted).then_some((known.amounts, wanted))
    }

    pub fn change(&self, pod: &Pod, container: &Container, id: &str) -> Change {
        let Some((before, after)) = self.amounts(pod, container, id) else { return Change::None };
        let restarts =
            RESIZABLE.into_iter().filter(|resource| before.of(resource) != after.of(resource)).any(|resource| {
                let policy = container.resize_policy.iter().flatten().find(|p| p.resource_name == resource);
                policy.is_some_and(|p| p.restart_policy == "RestartContainer")
            });
        if restarts { Change::Restart } else { Change::InPlace }
    }

    /// The pod with what is in force, if that is not what was granted.
    pub fn pod_in_force(&self, pod: &Pod, containers: &HashMap<String, ResourceRequirements>) -> Option<Pod> {
        let differs = self.pod_differs(pod);
        if containers.is_empty() && !differs {
            return None;
        }
        let of_pod = if differs { self.pod.clone().flatten() } else { pod.spec().resources.clone() };
        let containers = containers.iter().map(|(name, resources)| (name.clone(), resources.clone())).collect();
        Some(Allocation { pod: of_pod, containers }.apply(pod))
    }

    /// The resources in force of a container that does not have what was granted yet.
    pub fn still(&self, pod: &Pod, container: &Container, id: &str) -> Option<ResourceRequirements> {
        self.amounts(pod, container, id)?;
        self.containers.get(&container.name).map(|known| known.resources.clone())
    }
}

/// The pod as the node has granted it. Nothing is copied where it was granted what it asks for.
pub fn granted(pod: Arc<Pod>, allocation: Option<&Allocation>) -> Arc<Pod> {
    match allocation {
        None => pod,
        Some(allocation) => Arc::new(allocation.apply(&pod)),
    }
}

#[derive(serde::Serialize)]
struct One<'a> {
    name: &'a str,
    resources: Cow<'a, ResourceRequirements>,
}

impl<'a> One<'a> {
    fn of(container: &'a Container) -> Self {
        let resources = container.resources.as_ref().map_or_else(Default::default, Cow::Borrowed);
        One { name: &container.name, resources }
    }
}

/// What a resize is about, as it stands in events: the resources of every container, and the generation.
pub fn summary(pod: &Pod, generation: i64, error: Option<&str>) -> String {
    #[derive(serde::Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Summary<'a> {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        init_containers: Vec<One<'a>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        containers: Vec<One<'a>>,
        generation: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a str>,
    }
    fn list(containers: &[Container]) -> Vec<One<'_>> {
        containers.iter().map(One::of).collect()
    }
    let summary = Summary {
        init_containers: list(pod::init_containers(pod.spec())),
        containers: list(&pod.spec().containers),
        generation,
        error,
    };
    serde_json::to_string(&summary).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(cpu: &str, memory: &str) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c",
            "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}],
            "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}}))
        .unwrap()
    }

    #[test]
    fn policies_decide_whether_a_container_is_started_anew() {
        let before = pod("1", "1Gi");
        let mut actuated = Actuated::default();
        actuated.set_container(&before, &before.spec().containers[0], "id");
        let change = |cpu: &str, memory: &str| {
            let after = pod(cpu, memory);
            actuated.change(&after, &after.spec().containers[0], "id")
        };
        assert_eq!(change("1000m", "1024Mi"), Change::None);
        assert_eq!(change("2", "1Gi"), Change::InPlace);
        assert_eq!(change("1", "2Gi"), Change::Restart);
        assert_eq!(actuated.change(&pod("2", "2Gi"), &before.spec().containers[0], "another"), Change::None);
    }

    #[test]
    fn a_grant_holds_until_another_is_made() {
        let granted = Allocation::of(&pod("1", "1Gi"));
        let asking = pod("3", "1Gi");
        assert!(granted.is_asked_by(&pod("1000m", "1Gi")) && !granted.is_asked_by(&asking));
        assert!(granted.is_asked_by(&granted.apply(&asking)));
    }

    #[test]
    fn a_limit_of_the_pod_limits_its_containers() {
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"spec": {"resources": {"limits": {"cpu": "2", "memory": "1Ki"}},
            "containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}}]}}))
            .unwrap();
        let amounts = Amounts::wanted(&pod, &pod.spec().containers[0]);
        assert_eq!((amounts.cpu_limit, amounts.memory_limit), (1000, 1024));
    }

    #[test]
    fn summaries_list_all_containers_in_upstreams_order() {
        expect_test::expect![[
            r#"{"containers":[{"name":"c","resources":{"requests":{"cpu":"1","memory":"1Mi"}}}],"generation":2,"error":"no"}"#
        ]]
        .assert_eq(&summary(&pod("1", "1Mi"), 2, Some("no")));
    }
}
