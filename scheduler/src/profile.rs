//! A profile: the plugins that take part for one scheduler name, and how each extension point asks them.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use crate::cluster::Cluster;
use crate::config::Profile as Config;
use crate::framework::{Code, CycleState, Plugin, Rejection, Verdict, point};
use crate::node::NodeInfo;
use crate::plugins::PLUGINS;
use crate::pod::PodInfo;
use crate::volumes::Volumes;

pub struct Profile {
    pub scheduler_name: String,
    pub percentage_of_nodes_to_score: u32,
    plugins: Vec<Entry>,
}

struct Entry {
    plugin: Arc<dyn Plugin>,
    points: u32,
    weight: i64,
}

/// Where PreFilter confines a pod to, and who said so.
pub type Confined = Option<(HashSet<Box<str>>, BTreeSet<&'static str>)>;

impl Profile {
    pub fn new(config: &Config, percentage: u32, volumes: &Volumes) -> Self {
        let plugins = PLUGINS.iter().map(|known| {
            let plugin = (known.make)(config, volumes);
            let mut points = plugin.points();
            for (name, at) in config.disabled.iter().filter(|(name, _)| name == "*" || name == known.name) {
                // Without a queue order and a binder nothing would work.
                if name != "*" || points & (point::QUEUE_SORT | point::BIND) == 0 {
                    points &= !point_named(at);
                }
            }
            for (_, at) in config.enabled.iter().filter(|(name, _)| name == known.name) {
                points |= plugin.points() & point_named(at);
            }
            let weight = config.weights.iter().find(|(name, _)| name == known.name).map_or(known.weight, |(_, w)| *w);
            Entry { plugin, points, weight }
        });
        Self {
            scheduler_name: config.scheduler_name.clone(),
            percentage_of_nodes_to_score: config.percentage_of_nodes_to_score.unwrap_or(percentage),
            plugins: plugins.collect(),
        }
    }

    fn at(&self, point: u32) -> impl Iterator<Item = (usize, &Arc<dyn Plugin>, i64)> {
        self.plugins
            .iter()
            .enumerate()
            .filter(move |(_, e)| e.points & point != 0)
            .map(|(i, e)| (i, &e.plugin, e.weight))
    }

    pub fn plugins_at(&self, point: u32) -> impl Iterator<Item = &Arc<dyn Plugin>> {
        self.at(point).map(|(_, plugin, _)| plugin)
    }

    pub fn plugin(&self, name: &str) -> Option<&Arc<dyn Plugin>> {
        self.plugins.iter().map(|e| &e.plugin).find(|p| p.name() == name)
    }

    pub fn pre_enqueue(&self, pod: &PodInfo) -> Verdict {
        self.plugins_at(point::PRE_ENQUEUE).try_for_each(|plugin| plugin.pre_enqueue(pod))
    }

    pub fn pre_filter(
        &self,
        cluster: &Cluster,
        pod: &PodInfo,
        state: &mut CycleState,
    ) -> Result<Confined, Box<Rejection>> {
        let mut confined: Confined = None;
        let mut soft: Option<Box<Rejection>> = None;
        for (bit, plugin, _) in self.at(point::PRE_FILTER) {
            let found = match plugin.pre_filter(cluster, pod, state) {
                Ok(found) => found,
                Err(rejection) if rejection.code == Code::Unschedulable => {
                    soft.get_or_insert(rejection);
                    continue;
                }
                Err(rejection) => return Err(rejection),
            };
            if found.skip {
                state.skip_filter |= 1 << bit;
            }
            if let Some(nodes) = found.nodes {
                let (all, by) = confined.get_or_insert_with(|| (nodes.clone(), BTreeSet::new()));
                all.retain(|n| nodes.contains(n));
                by.insert(plugin.name());
                if all.is_empty() {
                    let names = by.iter().copied().collect::<Vec<_>>().join(" ");
                    let reason = format!("node(s) didn't satisfy plugin(s) [{names}] simultaneously");
                    return crate::framework::unresolvable(plugin.name(), reason).map(|()| None);
                }
            }
        }
        soft.map_or(Ok(confined), Err)
    }

    fn filter(&self, cluster: &Cluster, state: &CycleState, pod: &PodInfo, info: &NodeInfo) -> Verdict {
        for (bit, plugin, _) in self.at(point::FILTER) {
            if state.skip_filter & (1 << bit) == 0 {
                plugin.filter(cluster, pod, state, info)?;
            }
        }
        Ok(())
    }

    /// Whether the pod may run on the node, also once the pods of its priority or more that are nominated there run.
    pub fn fits(&self, cluster: &Cluster, state: &CycleState, pod: &PodInfo, info: &NodeInfo) -> Verdict {
        let nominated = cluster.nominated(&info.node().name);
        let mut coming = nominated.iter().filter(|p| p.priority >= pod.priority && p.uid != pod.uid).peekable();
        if coming.peek().is_some() {
            let (mut state, mut info) = (state.clone(), info.clone());
            for other in coming {
                info.add(other.clone());
                self.moved(cluster, &mut state, pod, other, &info, true);
            }
            self.filter(cluster, &state, pod, &info)?;
        }
        // They may never come: the pod must not depend on them either.
        self.filter(cluster, state, pod, info)
    }

    pub fn moved(
        &self,
        cluster: &Cluster,
        state: &mut CycleState,
        pod: &PodInfo,
        other: &PodInfo,
        info: &NodeInfo,
        came: bool,
    ) {
        for (bit, plugin, _) in self.at(point::PRE_FILTER) {
            // A pod that nothing bound before may be bound by the newcomer.
            if came {
                state.skip_filter &= !(u64::from(plugin.name() == crate::plugins::inter_pod_affinity::NAME) << bit);
            }
            plugin.moved(cluster, state, pod, other, info, came);
        }
    }

    /// The score of each node, weighted and summed over the plugins.
    pub fn score(&self, cluster: &Cluster, state: &mut CycleState, pod: &PodInfo, nodes: &[usize]) -> Vec<i64> {
        for (bit, plugin, _) in self.at(point::PRE_SCORE) {
            if !plugin.pre_score(cluster, pod, state, nodes) {
                state.skip_score |= 1 << bit;
            }
        }
        let mut totals = vec![0; nodes.len()];
        let mut scores = vec![0; nodes.len()];
        for (bit, plugin, weight) in self.at(point::SCORE) {
            if state.skip_score & (1 << bit) != 0 {
                continue;
            }
            for (score, node) in scores.iter_mut().zip(nodes) {
                *score = plugin.score(cluster, pod, state, cluster.at(*node));
            }
            plugin.normalize(cluster, pod, state, nodes, &mut scores);
            for (total, score) in totals.iter_mut().zip(&scores) {
                *total += score * weight;
            }
        }
        totals
    }

    pub fn reserve(&self, cluster: &Cluster, pod: &Arc<PodInfo>, state: &CycleState, node: &str) -> Verdict {
        let verdict = self.plugins_at(point::RESERVE).try_for_each(|plugin| plugin.reserve(cluster, pod, state, node));
        if verdict.is_err() {
            self.unreserve(pod);
        }
        verdict
    }

    pub fn unreserve(&self, pod: &PodInfo) {
        self.plugins_at(point::RESERVE).for_each(|plugin| plugin.unreserve(pod));
    }

    pub async fn pre_bind(&self, pod: &PodInfo, node: &str) -> Verdict {
        for plugin in self.plugins_at(point::PRE_BIND) {
            plugin.pre_bind(pod, node).await?;
        }
        Ok(())
    }
}

fn point_named(name: &str) -> u32 {
    match name {
        "preEnqueue" => point::PRE_ENQUEUE,
        "queueSort" => point::QUEUE_SORT,
        "preFilter" => point::PRE_FILTER,
        "filter" => point::FILTER,
        "postFilter" => point::POST_FILTER,
        "preScore" => point::PRE_SCORE,
        "score" => point::SCORE,
        "reserve" => point::RESERVE,
        "permit" => point::PERMIT,
        "preBind" => point::PRE_BIND,
        "bind" => point::BIND,
        "postBind" => point::POST_BIND,
        _ => u32::MAX,
    }
}
