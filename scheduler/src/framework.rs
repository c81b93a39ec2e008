//! The scheduling framework: what a plugin may say and when it is asked. The counterpart of upstream's
//! `pkg/scheduler/framework`, with a cycle that runs in one task, so that plugins need no locks.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;

use crate::cluster::Cluster;
use crate::node::{Node, NodeInfo};
use crate::plugins::{inter_pod_affinity, pod_topology_spread, volume_binding};
use crate::pod::PodInfo;

pub const SCORE_MAX: i64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Not now; evicting pods might help.
    Unschedulable,
    /// Not now, and evicting pods would not help.
    Unresolvable,
    /// The scheduler could not tell.
    Error,
}

/// Why a pod cannot go somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub code: Code,
    pub reasons: Vec<Cow<'static, str>>,
    pub plugin: &'static str,
}

impl Rejection {
    pub fn message(&self) -> String {
        self.reasons.join(", ")
    }
}

/// `Err` is a rejection, which is an ordinary outcome.
pub type Verdict = Result<(), Box<Rejection>>;

pub fn unschedulable(plugin: &'static str, reason: impl Into<Cow<'static, str>>) -> Verdict {
    Err(Box::new(Rejection { code: Code::Unschedulable, reasons: vec![reason.into()], plugin }))
}

pub fn unresolvable(plugin: &'static str, reason: impl Into<Cow<'static, str>>) -> Verdict {
    Err(Box::new(Rejection { code: Code::Unresolvable, reasons: vec![reason.into()], plugin }))
}

pub fn failed(plugin: &'static str, reason: impl Into<Cow<'static, str>>) -> Verdict {
    Err(Box::new(Rejection { code: Code::Error, reasons: vec![reason.into()], plugin }))
}

/// What happened in the cluster; each plugin knows what may let a pod through that it rejected.
#[derive(Clone)]
pub enum Change {
    NodeAdded(Arc<Node>),
    NodeUpdated {
        old: Arc<Node>,
        new: Arc<Node>,
    },
    NodeDeleted,
    /// A pod runs on a node now.
    PodAssigned(Arc<PodInfo>),
    PodUpdated {
        old: Arc<PodInfo>,
        new: Arc<PodInfo>,
    },
    /// A pod left its node.
    PodDeleted(Arc<PodInfo>),
    /// The waiting pod itself changed.
    OwnUpdated {
        old: Arc<PodInfo>,
        new: Arc<PodInfo>,
    },
    NamespaceUpdated,
    /// Volumes, claims, classes, drivers of nodes.
    Volumes,
}

/// The state of one cycle. Parts are shared between cycles of equal pods and copied when a cycle simulates.
#[derive(Clone, Default)]
pub struct CycleState {
    pub affinity: Option<Arc<inter_pod_affinity::State>>,
    pub spread: Option<Arc<pod_topology_spread::State>>,
    pub volumes: Option<Arc<volume_binding::State>>,
    /// Plugins, by bit, that have nothing to filter or score for this pod.
    pub skip_filter: u64,
    pub skip_score: u64,
}

/// The extension points of a plugin, as bits.
pub mod point {
    pub const PRE_ENQUEUE: u32 = 1;
    pub const QUEUE_SORT: u32 = 1 << 1;
    pub const PRE_FILTER: u32 = 1 << 2;
    pub const FILTER: u32 = 1 << 3;
    pub const POST_FILTER: u32 = 1 << 4;
    pub const PRE_SCORE: u32 = 1 << 5;
    pub const SCORE: u32 = 1 << 6;
    pub const RESERVE: u32 = 1 << 7;
    pub const PERMIT: u32 = 1 << 8;
    pub const PRE_BIND: u32 = 1 << 9;
    pub const BIND: u32 = 1 << 10;
    pub const POST_BIND: u32 = 1 << 11;
}

/// What PreFilter found.
#[derive(Default)]
pub struct PreFiltered {
    /// Nothing to filter.
    pub skip: bool,
    /// Only these nodes come into question.
    pub nodes: Option<HashSet<Box<str>>>,
}

/// What a preemption decided.
pub struct Preemption {
    pub node: Box<str>,
    pub victims: Vec<Arc<PodInfo>>,
}

/// What PostFilter makes of a pod that fits nowhere.
pub enum PostFiltered {
    Preempt(Preemption),
    /// No way. With `clear`, an earlier nomination is void.
    Rejected {
        message: String,
        clear: bool,
    },
    /// The other PostFilter plugins are not asked.
    Failed(String),
}

/// What a PostFilter plugin may look at.
pub struct Unfit<'a> {
    pub cluster: &'a Cluster,
    pub profile: &'a crate::profile::Profile,
    pub state: &'a CycleState,
    pub pod: &'a Arc<PodInfo>,
    pub diagnosis: &'a crate::cycle::Diagnosis,
}

/// A plugin. All but the binding methods are called by the scheduling task, synchronously, and must not block.
#[async_trait]
pub trait Plugin: Send + Sync {
    fn name(&self) -> &'static str;
    /// The extension points it takes part in, of [`point`].
    fn points(&self) -> u32;

    /// Whether a change may let through a pod that this plugin rejected.
    fn may_help(&self, _cluster: &Cluster, _pod: &PodInfo, _change: &Change) -> bool {
        false
    }

    /// Whether the pod may enter the queue of pods to be scheduled.
    fn pre_enqueue(&self, _pod: &PodInfo) -> Verdict {
        Ok(())
    }

    fn pre_filter(&self, _: &Cluster, _pod: &PodInfo, _: &mut CycleState) -> Result<PreFiltered, Box<Rejection>> {
        Ok(PreFiltered::default())
    }

    fn filter(&self, _: &Cluster, _pod: &PodInfo, _: &CycleState, _: &NodeInfo) -> Verdict {
        Ok(())
    }

    /// Another pod is taken to come to (or leave) a node: the state must say so.
    fn moved(&self, _: &Cluster, _state: &mut CycleState, _pod: &PodInfo, _other: &PodInfo, _: &NodeInfo, _came: bool) {
    }

    fn post_filter(&self, _: &Unfit<'_>) -> PostFiltered {
        PostFiltered::Rejected { message: String::new(), clear: false }
    }

    /// Whether there is something to score.
    fn pre_score(&self, _: &Cluster, _pod: &PodInfo, _: &mut CycleState, _nodes: &[usize]) -> bool {
        true
    }

    fn score(&self, _: &Cluster, _pod: &PodInfo, _: &CycleState, _: &NodeInfo) -> i64 {
        0
    }

    /// Brings the scores into 0 to [`SCORE_MAX`].
    fn normalize(&self, _: &Cluster, _pod: &PodInfo, _: &CycleState, _nodes: &[usize], _scores: &mut [i64]) {}

    fn reserve(&self, _: &Cluster, _pod: &Arc<PodInfo>, _: &CycleState, _node: &str) -> Verdict {
        Ok(())
    }

    fn unreserve(&self, _pod: &PodInfo) {}

    /// Runs outside the scheduling task and may take long.
    async fn pre_bind(&self, _pod: &PodInfo, _node: &str) -> Verdict {
        Ok(())
    }
}

/// Stretches scores to the full range, turned around if `reverse`.
pub fn normalize(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        if max == 0 {
            *score = if reverse { SCORE_MAX } else { *score };
            continue;
        }
        *score = SCORE_MAX * *score / max;
        if reverse {
            *score = SCORE_MAX - *score;
        }
    }
}
