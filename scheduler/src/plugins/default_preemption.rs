//! Makes room for a pod by evicting pods of lower priority, as few and as unimportant as possible.

use std::collections::HashMap;
use std::sync::Arc;

use rand::Rng;

use crate::cluster::Cluster;
use crate::config::Profile as Config;
use crate::cycle::Diagnosis;
use crate::framework::{Code, Plugin, PostFiltered, Preemption, Rejection, Unfit, point, unresolvable};
use crate::pod::PodInfo;

pub const NAME: &str = "DefaultPreemption";

pub struct DefaultPreemption {
    percentage_min: usize,
    absolute_min: usize,
}

/// A node, with what would have to go there.
struct Candidate {
    node: usize,
    /// Most important first.
    victims: Vec<Arc<PodInfo>>,
    budget_violations: usize,
}

impl DefaultPreemption {
    pub fn new(config: &Config) -> Self {
        Self {
            percentage_min: config.preemption_candidates_percentage_min,
            absolute_min: config.preemption_candidates_absolute_min,
        }
    }
}

impl Plugin for DefaultPreemption {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::POST_FILTER
    }

    fn post_filter(&self, unfit: &Unfit<'_>) -> PostFiltered {
        let Unfit { cluster, pod, diagnosis, .. } = unfit;
        if let Some(why) = ineligible(cluster, pod, diagnosis) {
            return PostFiltered::Rejected { message: format!("preemption: {why}"), clear: false };
        }
        let potential: Vec<usize> =
            diagnosis.statuses.iter().filter(|(_, r)| r.code == Code::Unschedulable).map(|(node, _)| *node).collect();
        let wanted = (potential.len() * self.percentage_min / 100).max(self.absolute_min);
        let mut tried = Diagnosis::default();
        let mut candidates: Vec<Candidate> = Vec::new();
        let offset = if potential.is_empty() { 0 } else { rand::rng().random_range(0..potential.len()) };
        let mut unviolating = false;
        for at in 0..potential.len() {
            let node = potential[(offset + at) % potential.len()];
            match victims(unfit, node) {
                Ok(candidate) => {
                    unviolating |= candidate.budget_violations == 0;
                    candidates.push(candidate);
                    if unviolating && candidates.len() >= wanted {
                        break;
                    }
                }
                Err(rejection) => tried.statuses.push((node, rejection)),
            }
        }
        let Some(best) = choose(candidates) else {
            let absent = "Preemption is not helpful for scheduling";
            tried.absent = unresolvable(NAME, absent).err();
            let message = format!("preemption: {}", tried.message(cluster.len()));
            return PostFiltered::Rejected { message, clear: true };
        };
        let node = cluster.at(best.node).node().name.clone();
        PostFiltered::Preempt(Preemption { node, victims: best.victims })
    }
}

fn ineligible(cluster: &Cluster, pod: &PodInfo, diagnosis: &Diagnosis) -> Option<&'static str> {
    if pod.never_preempts {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let node = cluster.node(cluster.nominated_node(&pod.uid)?)?;
    let hopeless = diagnosis.statuses.iter().any(|(n, r)| *n == node.index && r.code == Code::Unresolvable);
    let leaving = node.pods.iter().any(|p| p.deleting && p.priority < pod.priority);
    (!hopeless && leaving).then_some("not eligible due to a terminating pod on the nominated node.")
}

/// Most important first: higher priority, then longer running.
fn by_importance(a: &Arc<PodInfo>, b: &Arc<PodInfo>) -> std::cmp::Ordering {
    b.priority.cmp(&a.priority).then(a.start_ns().cmp(&b.start_ns()))
}

/// The least set of pods whose going lets the pod onto the node.
fn victims(unfit: &Unfit<'_>, node: usize) -> Result<Candidate, Box<Rejection>> {
    let Unfit { cluster, profile, pod, .. } = unfit;
    let mut info = cluster.at(node).clone();
    let mut state = unfit.state.clone();
    let mut lower: Vec<_> = info.pods.iter().filter(|p| p.priority < pod.priority).cloned().collect();
    if lower.is_empty() {
        unresolvable(NAME, "No preemption victims found for incoming pod")?;
    }
    for victim in &lower {
        info.remove(&victim.uid);
        profile.moved(cluster, &mut state, pod, victim, &info, false);
    }
    profile.fits(cluster, &state, pod, &info)?;
    lower.sort_by(by_importance);
    let (violating, harmless) = split_by_budgets(cluster, lower);
    let mut candidate = Candidate { node, victims: Vec::new(), budget_violations: 0 };
    // Each is spared if the pod fits beside it; those under a budget are tried first.
    let order = violating.into_iter().map(|p| (p, true)).chain(harmless.into_iter().map(|p| (p, false)));
    for (victim, violates) in order {
        info.add(victim.clone());
        profile.moved(cluster, &mut state, pod, &victim, &info, true);
        if profile.fits(cluster, &state, pod, &info).is_err() {
            info.remove(&victim.uid);
            profile.moved(cluster, &mut state, pod, &victim, &info, false);
            candidate.budget_violations += usize::from(violates);
            candidate.victims.push(victim);
        }
    }
    candidate.victims.sort_by(by_importance);
    Ok(candidate)
}

fn split_by_budgets(cluster: &Cluster, pods: Vec<Arc<PodInfo>>) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let budgets = cluster.workloads.budgets.list();
    let mut left: HashMap<usize, i32> = HashMap::new();
    pods.into_iter().partition(|pod| {
        let mut violates = false;
        for (at, budget) in budgets.iter().enumerate() {
            let means = budget.namespace == pod.key.namespace
                && !pod.labels.is_empty()
                && !budget.selector.is_everything()
                && budget.selector.matches(&pod.labels)
                && !budget.disrupted.contains(&pod.key.name);
            if means {
                let left = left.entry(at).or_insert(budget.disruptions_allowed);
                *left -= 1;
                violates |= *left < 0;
            }
        }
        violates
    })
}

/// The node where the least harm is done.
fn choose(mut candidates: Vec<Candidate>) -> Option<Candidate> {
    let harm = |c: &Candidate| {
        let highest = c.victims.first().map_or(i64::MIN, |v| i64::from(v.priority));
        // Priorities are shifted so that more victims never sum up to less.
        let sum: i64 = c.victims.iter().map(|v| i64::from(v.priority) + i64::from(i32::MAX) + 1).sum();
        let of_highest = c.victims.iter().filter(|v| i64::from(v.priority) == highest);
        let earliest = of_highest.map(|v| v.start_ns()).min().unwrap_or(0);
        (c.budget_violations, highest, sum, c.victims.len(), std::cmp::Reverse(earliest))
    };
    let best = candidates.iter().enumerate().min_by_key(|(_, c)| harm(c)).map(|(at, _)| at)?;
    Some(candidates.swap_remove(best))
}
