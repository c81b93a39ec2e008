//! How large each ReplicaSet is to be. Pure: from the Deployment and its ReplicaSets to a list of sizes.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::revision;
use crate::common::{int_or_percent, owners};

/// The ReplicaSet of the present template, and the others from the oldest on.
pub(super) struct Sets {
    pub new: Option<ReplicaSet>,
    pub old: Vec<ReplicaSet>,
}

impl Sets {
    pub(super) fn all(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.old.iter().chain(&self.new)
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut ReplicaSet> {
        self.old.iter_mut().chain(&mut self.new).find(|set| owners::name(&set.metadata) == name)
    }
}

/// A ReplicaSet and the size it is to have. The size may be what it is: then only its annotations are brought up to date.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Resize {
    pub name: String,
    pub size: i32,
}

fn resize(set: &ReplicaSet, size: i32) -> Resize {
    Resize { name: owners::name(&set.metadata).to_owned(), size }
}

pub(super) fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(super) fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

pub(super) fn recreates(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// How many pods more, and how many fewer, than wanted a rolling update may have. Both zero would get nowhere.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let resolve = |value: Option<&IntOrString>, up: bool| {
        value.and_then(|value| int_or_percent::resolve(value, replicas(deployment), up)).unwrap_or(0)
    };
    let surge = resolve(rolling.and_then(|rolling| rolling.max_surge.as_ref()), true);
    let unavailable = resolve(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

pub(super) fn max_surge(deployment: &Deployment) -> i32 {
    if recreates(deployment) { 0 } else { fenceposts(deployment).0 }
}

pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    if recreates(deployment) || replicas(deployment) == 0 {
        return 0;
    }
    fenceposts(deployment).1.min(replicas(deployment))
}

/// Whether a ReplicaSet was last sized for a Deployment of another size.
pub(super) fn is_scaling(deployment: &Deployment, sets: &Sets) -> bool {
    sets.all().filter(|set| size(set) > 0).any(|set| {
        let desired = owners::annotation(&set.metadata, revision::DESIRED_REPLICAS).and_then(|text| text.parse().ok());
        desired.is_some_and(|desired: i32| desired != replicas(deployment))
    })
}

/// The size of the new ReplicaSet that is `present` large now.
pub(super) fn size_of_new(deployment: &Deployment, sets: &Sets, present: i32) -> i32 {
    let wanted = replicas(deployment);
    if recreates(deployment) {
        return wanted;
    }
    let total: i32 = sets.all().map(size).sum();
    let most = wanted + max_surge(deployment);
    if total >= most {
        return present;
    }
    present + (most - total).min(wanted - present)
}

pub(super) fn reconcile_new(deployment: &Deployment, sets: &Sets) -> Vec<Resize> {
    let Some(new) = &sets.new else { return Vec::new() };
    let wanted = replicas(deployment);
    match size(new) {
        present if present == wanted => Vec::new(),
        present if present > wanted => vec![resize(new, wanted)],
        present => vec![resize(new, size_of_new(deployment, sets, present))],
    }
}

pub(super) fn new_to_full_size(deployment: &Deployment, sets: &Sets) -> Vec<Resize> {
    sets.new.iter().map(|new| resize(new, replicas(deployment))).collect()
}

pub(super) fn all_old_to_zero(sets: &Sets) -> Vec<Resize> {
    sets.old.iter().filter(|set| size(set) > 0).map(|set| resize(set, 0)).collect()
}

/// Old pods that are not available go first, as far as enough others are.
pub(super) fn clean_up_unhealthy(deployment: &Deployment, sets: &Sets) -> Vec<Resize> {
    if sets.old.iter().map(size).sum::<i32>() == 0 {
        return Vec::new();
    }
    let most = most_scaled_down(deployment, sets);
    let mut total = 0;
    let mut plan = Vec::new();
    for set in &sets.old {
        if total >= most {
            break;
        }
        let (size, available) = (size(set), available(set));
        if size == 0 || size <= available {
            continue;
        }
        let fewer = (most - total).min(size - available);
        plan.push(resize(set, size - fewer));
        total += fewer;
    }
    plan
}

/// How many pods can go without any more becoming unavailable than may be.
fn most_scaled_down(deployment: &Deployment, sets: &Sets) -> i32 {
    let all: i32 = sets.all().map(size).sum();
    let least = replicas(deployment) - max_unavailable(deployment);
    let new_unavailable = sets.new.as_ref().map_or(0, |new| size(new) - available(new));
    all - least - new_unavailable
}

/// Available old pods go as far as enough others are available.
pub(super) fn scale_down_old(deployment: &Deployment, sets: &Sets) -> Vec<Resize> {
    if sets.old.iter().map(size).sum::<i32>() == 0 || most_scaled_down(deployment, sets) <= 0 {
        return Vec::new();
    }
    let least = replicas(deployment) - max_unavailable(deployment);
    let spare = sets.all().map(available).sum::<i32>() - least;
    let mut total = 0;
    let mut plan = Vec::new();
    for set in &sets.old {
        if total >= spare {
            break;
        }
        let size = size(set);
        if size == 0 {
            continue;
        }
        let fewer = size.min(spare - total);
        plan.push(resize(set, size - fewer));
        total += fewer;
    }
    plan
}

/// Shares a change of the Deployment's size out between its ReplicaSets.
pub(super) fn scale(deployment: &Deployment, sets: &Sets) -> Vec<Resize> {
    let wanted = replicas(deployment);
    let mut active: Vec<&ReplicaSet> = sets.all().filter(|set| size(set) > 0).collect();
    let only = match active.as_slice() {
        [] => sets.new.as_ref().or(sets.old.last()),
        [only] => Some(*only),
        _ => None,
    };
    if let Some(only) = only {
        return if size(only) == wanted { Vec::new() } else { vec![resize(only, wanted)] };
    }
    if sets.new.as_ref().is_some_and(|new| is_saturated(deployment, new)) {
        return all_old_to_zero(sets);
    }
    if recreates(deployment) {
        return Vec::new();
    }
    let allowed = if wanted > 0 { wanted + max_surge(deployment) } else { 0 };
    let to_add = allowed - active.iter().map(|set| size(set)).sum::<i32>();
    // The largest get the most; of equal ones the newest grow first and the oldest shrink first.
    active.sort_by(|a, b| {
        size(b).cmp(&size(a)).then_with(|| {
            let by_age = owners::created(&a.metadata).cmp(&owners::created(&b.metadata));
            if to_add > 0 { by_age.reverse() } else { by_age }
        })
    });
    let mut added = 0;
    let mut plan: Vec<Resize> = active
        .iter()
        .map(|set| {
            let share = proportion(deployment, set, to_add, added);
            added += share;
            resize(set, size(set) + share)
        })
        .collect();
    // What rounding left over goes to the largest.
    if to_add != 0
        && let Some(largest) = plan.first_mut()
    {
        largest.size = (largest.size + to_add - added).max(0);
    }
    plan
}

fn is_saturated(deployment: &Deployment, new: &ReplicaSet) -> bool {
    let wanted = replicas(deployment);
    let desired =
        owners::annotation(&new.metadata, revision::DESIRED_REPLICAS).and_then(|text| text.parse::<i32>().ok());
    size(new) == wanted && desired == Some(wanted) && available(new) == wanted
}

/// A ReplicaSet's share of a change, which does not exceed what is left of it.
fn proportion(deployment: &Deployment, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    if size(set) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(deployment, set);
    let left = to_add - added;
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}

fn fraction(deployment: &Deployment, set: &ReplicaSet) -> i32 {
    if replicas(deployment) == 0 {
        return -size(set);
    }
    let most = replicas(deployment) + max_surge(deployment);
    let before = owners::annotation(&set.metadata, revision::MAX_REPLICAS)
        .and_then(|text| text.parse::<i32>().ok())
        .filter(|most| *most > 0)
        .or_else(|| deployment.status.as_ref().and_then(|status| status.replicas))
        .filter(|before| *before > 0)
        .unwrap_or(most);
    let scaled = f64::from(size(set)) * f64::from(most) / f64::from(before);
    scaled.round() as i32 - size(set)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(replicas: i32) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "d"},
            "spec": {"replicas": replicas, "selector": {}, "template": {},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}},
        }))
        .unwrap()
    }

    fn set(name: &str, size: i32, available: i32, most: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": name, "annotations": {
                revision::MAX_REPLICAS: most.to_string(), revision::DESIRED_REPLICAS: "10"}},
            "spec": {"replicas": size, "selector": {}},
            "status": {"replicas": size, "availableReplicas": available},
        }))
        .unwrap()
    }

    fn sizes(plan: Vec<Resize>) -> Vec<(String, i32)> {
        plan.into_iter().map(|resize| (resize.name, resize.size)).collect()
    }

    #[test]
    fn a_rolling_update_surges_then_gives_up_what_is_spare() {
        let deployment = deployment(10);
        let mut sets = Sets { new: Some(set("new", 0, 0, 13)), old: vec![set("old", 10, 10, 13)] };
        assert_eq!(sizes(reconcile_new(&deployment, &sets)), [("new".to_owned(), 3)]);
        sets.new = Some(set("new", 3, 0, 13));
        assert_eq!(sizes(scale_down_old(&deployment, &sets)), [("old".to_owned(), 8)]);
    }

    #[test]
    fn unavailable_old_pods_go_first() {
        let deployment = deployment(10);
        let sets = Sets { new: Some(set("new", 3, 0, 13)), old: vec![set("bad", 4, 0, 13), set("old", 6, 6, 13)] };
        assert_eq!(sizes(clean_up_unhealthy(&deployment, &sets)), [("bad".to_owned(), 2)]);
    }

    #[test]
    fn scaling_during_a_rollout_is_proportional() {
        // 15 + 4 pods may be; the three sets together had 13.
        let sets = Sets { new: Some(set("new", 5, 5, 13)), old: vec![set("old", 6, 6, 13), set("older", 2, 2, 13)] };
        let plan = sizes(scale(&deployment(15), &sets));
        assert_eq!(plan.iter().map(|(_, size)| size).sum::<i32>(), 19);
        assert_eq!(plan[0], ("old".to_owned(), 9));
        assert!(is_scaling(&deployment(15), &sets));
    }

    #[test]
    fn surge_and_unavailability_are_never_both_zero() {
        let mut deployment = deployment(1);
        if let Some(rolling) =
            deployment.spec.as_mut().and_then(|spec| spec.strategy.as_mut()).and_then(|s| s.rolling_update.as_mut())
        {
            rolling.max_surge = Some(IntOrString::Int(0));
            rolling.max_unavailable = Some(IntOrString::Int(0));
        }
        assert_eq!((max_surge(&deployment), max_unavailable(&deployment)), (0, 1));
    }
}
