//! The plugins, in upstream's default order, which is the order of their verdicts on a node.

use std::sync::Arc;

use crate::config::Profile as Config;
use crate::framework::Plugin;

pub mod balanced_allocation;
pub mod default_binder;
pub mod default_preemption;
pub mod dynamic_resources;
pub mod image_locality;
pub mod inter_pod_affinity;
pub mod node_affinity;
pub mod node_name;
pub mod node_ports;
pub mod node_resources_fit;
pub mod node_unschedulable;
pub mod node_volume_limits;
pub mod pod_topology_spread;
pub mod priority_sort;
pub mod scheduling_gates;
pub mod taint_toleration;
pub mod volume_binding;
pub mod volume_restrictions;
pub mod volume_zone;

/// A plugin of the default profile, with its weight.
pub struct Known {
    pub name: &'static str,
    pub weight: i64,
    pub make: fn(&Config, &crate::volumes::Volumes) -> Arc<dyn Plugin>,
}

pub const PLUGINS: &[Known] = &[
    Known { name: scheduling_gates::NAME, weight: 0, make: |_, _| Arc::new(scheduling_gates::SchedulingGates) },
    Known { name: priority_sort::NAME, weight: 0, make: |_, _| Arc::new(priority_sort::PrioritySort) },
    Known { name: node_unschedulable::NAME, weight: 0, make: |_, _| Arc::new(node_unschedulable::NodeUnschedulable) },
    Known { name: node_name::NAME, weight: 0, make: |_, _| Arc::new(node_name::NodeName) },
    Known { name: taint_toleration::NAME, weight: 3, make: |_, _| Arc::new(taint_toleration::TaintToleration) },
    Known { name: node_affinity::NAME, weight: 2, make: |c, _| Arc::new(node_affinity::NodeAffinity::new(c)) },
    Known { name: node_ports::NAME, weight: 0, make: |_, _| Arc::new(node_ports::NodePorts) },
    Known { name: node_resources_fit::NAME, weight: 1, make: |c, _| Arc::new(node_resources_fit::Fit::new(c)) },
    Known {
        name: volume_restrictions::NAME,
        weight: 0,
        make: |_, v| Arc::new(volume_restrictions::VolumeRestrictions(v.clone())),
    },
    Known {
        name: node_volume_limits::NAME,
        weight: 0,
        make: |_, v| Arc::new(node_volume_limits::NodeVolumeLimits(v.clone())),
    },
    Known {
        name: volume_binding::NAME,
        weight: 0,
        make: |_, v| Arc::new(volume_binding::VolumeBinding::new(v.clone())),
    },
    Known { name: volume_zone::NAME, weight: 0, make: |_, v| Arc::new(volume_zone::VolumeZone(v.clone())) },
    Known {
        name: pod_topology_spread::NAME,
        weight: 2,
        make: |c, _| Arc::new(pod_topology_spread::PodTopologySpread::new(c)),
    },
    Known {
        name: inter_pod_affinity::NAME,
        weight: 2,
        make: |c, _| Arc::new(inter_pod_affinity::InterPodAffinity::new(c)),
    },
    Known { name: dynamic_resources::NAME, weight: 0, make: |_, _| Arc::new(dynamic_resources::DynamicResources) },
    Known {
        name: default_preemption::NAME,
        weight: 0,
        make: |c, _| Arc::new(default_preemption::DefaultPreemption::new(c)),
    },
    Known {
        name: balanced_allocation::NAME,
        weight: 1,
        make: |c, _| Arc::new(balanced_allocation::BalancedAllocation::new(c)),
    },
    Known { name: image_locality::NAME, weight: 1, make: |_, _| Arc::new(image_locality::ImageLocality) },
    Known { name: default_binder::NAME, weight: 0, make: |_, _| Arc::new(default_binder::DefaultBinder) },
];
