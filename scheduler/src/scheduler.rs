//! The scheduling task: it alone holds the cluster's state and the queue. It takes what informers report, schedules one pod
//! after the other, and leaves requests to [`crate::calls`].

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coxswain_client::k8s_openapi::api::core::v1::{Namespace, Node as ApiNode};
use coxswain_client::{Client, Event, Informers, ObjectKey, Selection, Store, Subscription};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::calls::{Bound, Call, Calls, Done};
use crate::cluster::{Cluster, Moved};
use crate::config::Config;
use crate::cycle::{self, Failure, Memory, Outcome};
use crate::events::Recorder;
use crate::framework::Change;
use crate::node::Node;
use crate::pod::{PodInfo, Scheduled};
use crate::profile::Profile;
use crate::queue::{Queue, Waiting};
use crate::selector::Labels;
use crate::volumes::Volumes;
use crate::workloads::{Selecting, Workloads};

/// Bindings under way; when there are more, the next pod waits.
const BINDINGS_MAX: usize = 1000;
/// Pods scheduled before others in this process get their turn.
const PODS_PER_TURN: usize = 8;
const FLUSH_INTERVAL: Duration = Duration::from_secs(30);

/// A namespace's labels, with its name.
struct Named(String, Labels);

struct Scheduler {
    cluster: Cluster,
    queue: Queue,
    memory: Memory,
    profiles: HashMap<String, Arc<Profile>>,
    pods: Store<PodInfo>,
    calls: Calls,
    recorder: Recorder,
    bindings: usize,
    start: usize,
}

pub async fn run(config: Config, client: Client, shutdown: CancellationToken) {
    let informers = Informers::new(client.clone());
    let pods = informers.projected(Selection::default(), PodInfo::new);
    let nodes = informers.projected(Selection::default(), |node: ApiNode| Arc::new(Node::new(node)));
    let namespaces = informers.projected(Selection::default(), |namespace: Namespace| {
        Named(namespace.metadata.name.unwrap_or_default(), Labels::new(namespace.metadata.labels.as_ref()))
    });
    let (workloads, selecting) = Workloads::new(&informers);
    let (volumes, watched) = Volumes::new(&informers);
    let synced = async {
        pods.synced().await;
        nodes.synced().await;
        namespaces.synced().await;
        for informer in &selecting {
            informer.synced().await;
        }
        watched.claims.synced().await;
        watched.volumes.synced().await;
        watched.classes.synced().await;
    };
    tokio::select! {
        () = synced => {}
        () = shutdown.cancelled() => return informers.stop(),
    }
    let percentage = config.percentage_of_nodes_to_score;
    let profiles: Vec<_> = config.profiles.iter().map(|p| Arc::new(Profile::new(p, percentage, &volumes))).collect();
    let recorder = Recorder::new(client.clone());
    let (done, mut results) = mpsc::unbounded_channel();
    let mut scheduler = Scheduler {
        cluster: Cluster::new(workloads, volumes),
        queue: Queue::new(config.initial_backoff, config.backoff_max),
        memory: Memory::default(),
        profiles: profiles.into_iter().map(|p| (p.scheduler_name.clone(), p)).collect(),
        pods: pods.store(),
        calls: Calls::new(client, recorder.clone(), done),
        recorder,
        bindings: 0,
        start: 0,
    };
    let mut namespaces = namespaces.subscribe();
    let mut nodes = nodes.subscribe();
    let mut pods = pods.subscribe();
    let mut selecting: Vec<_> = selecting.iter().map(|informer| informer.subscribe()).collect();
    let mut claims = watched.claims.subscribe();
    let mut volumes = watched.volumes.subscribe();
    let mut classes = watched.classes.subscribe();
    let mut drivers = watched.drivers.subscribe();
    let mut flush = tokio::time::interval(FLUSH_INTERVAL);
    loop {
        // What is known to have happened comes before the next decision.
        while let Some(event) = namespaces.try_next() {
            scheduler.namespace(event);
        }
        while let Some(event) = nodes.try_next() {
            scheduler.node(event);
        }
        while let Some(event) = pods.try_next() {
            scheduler.pod(event);
        }
        for subscription in &mut selecting {
            while let Some(event) = subscription.try_next() {
                scheduler.selecting(&event);
            }
        }
        while let Ok(done) = results.try_recv() {
            scheduler.done(done);
        }
        let mut idle = false;
        for _ in 0..PODS_PER_TURN {
            if scheduler.bindings >= BINDINGS_MAX {
                idle = true;
                break;
            }
            match scheduler.queue.pop(Instant::now()) {
                Some(waiting) => scheduler.schedule(waiting),
                None => {
                    idle = true;
                    break;
                }
            }
        }
        if !idle {
            if shutdown.is_cancelled() {
                return informers.stop();
            }
            tokio::task::yield_now().await;
            continue;
        }
        let ready = scheduler.queue.next_ready().unwrap_or_else(|| Instant::now() + FLUSH_INTERVAL);
        tokio::select! {
            () = shutdown.cancelled() => return informers.stop(),
            Some(event) = pods.next() => scheduler.pod(event),
            Some(event) = nodes.next() => scheduler.node(event),
            Some(event) = namespaces.next() => scheduler.namespace(event),
            Some(done) = results.recv() => scheduler.done(done),
            Some(_) = claims.next() => scheduler.changed(&Change::Volumes),
            Some(_) = volumes.next() => scheduler.changed(&Change::Volumes),
            Some(_) = classes.next() => scheduler.changed(&Change::Volumes),
            Some(_) = drivers.next() => scheduler.changed(&Change::Volumes),
            event = first_of(&mut selecting) => scheduler.selecting(&event),
            _ = flush.tick() => scheduler.queue.flush(Instant::now()),
            () = tokio::time::sleep_until(ready.into()) => {}
        }
    }
}

/// The next event of any of them.
async fn first_of<P: Send + Sync + 'static>(subscriptions: &mut [Subscription<P>]) -> Event<P> {
    let next = subscriptions.iter_mut().map(|subscription| {
        Box::pin(async move {
            match subscription.next().await {
                Some(event) => event,
                None => std::future::pending().await,
            }
        })
    });
    futures::future::select_all(next).await.0
}

impl Scheduler {
    /// What selects pods changed, and with it how pods that do not say are spread.
    fn selecting(&mut self, event: &Event<Selecting>) {
        // Most updates are of a status.
        if !matches!(event, Event::Updated { old, new } if old == new) {
            self.memory.clear();
        }
    }

    fn namespace(&mut self, event: Event<Named>) {
        let labels = match &event {
            Event::Deleted(_) => None,
            other => Some(other.object().1.clone()),
        };
        self.cluster.set_namespace(&event.object().0, labels);
        if let Event::Updated { old, new } = &event {
            if old.1 == new.1 {
                return;
            }
            self.memory.clear();
            self.changed(&Change::NamespaceUpdated);
        }
    }

    fn node(&mut self, event: Event<Arc<Node>>) {
        match event {
            Event::Added(node) => {
                self.cluster.set_node((*node).clone());
                self.memory.clear();
                self.changed(&Change::NodeAdded((*node).clone()));
            }
            Event::Updated { old, new } => {
                // Most updates are heartbeats.
                if old == new {
                    return;
                }
                if self.cluster.set_node((*new).clone()) {
                    self.memory.clear();
                }
                self.changed(&Change::NodeUpdated { old: (*old).clone(), new: (*new).clone() });
            }
            Event::Deleted(node) => {
                self.cluster.remove_node(&node.name);
                self.memory.clear();
                self.changed(&Change::NodeDeleted);
            }
        }
    }

    fn pod(&mut self, event: Event<PodInfo>) {
        match event {
            Event::Added(pod) => self.pod_is(None, pod),
            Event::Updated { old, new } => self.pod_is(Some(old), new),
            Event::Deleted(pod) => self.pod_gone(&pod),
        }
    }

    fn pod_is(&mut self, old: Option<Arc<PodInfo>>, pod: Arc<PodInfo>) {
        if pod.finished {
            return self.pod_gone(&pod);
        }
        if pod.node().is_some() {
            let known = self.cluster.is_placed(&pod.uid);
            let confirmed = self.cluster.is_assumed(&pod.uid);
            self.queue.remove(&pod.uid);
            self.cluster.withdraw(&pod.uid);
            let moves = self.cluster.place(pod.clone(), false);
            self.count(&moves);
            match old.filter(|_| known && !confirmed) {
                Some(old) if old.labels != pod.labels || old.spec != pod.spec => {
                    self.changed(&Change::PodUpdated { old, new: pod });
                }
                Some(_) => {}
                // What this scheduler assumed it has told the queue already.
                None if confirmed && moves.is_empty() => {}
                None => self.changed(&Change::PodAssigned(pod)),
            }
            return;
        }
        if pod.deleting || self.cluster.is_assumed(&pod.uid) {
            self.queue.remove(&pod.uid);
            return;
        }
        let Some(profile) = self.profiles.get(&*pod.scheduler_name).cloned() else { return };
        let (gated_by, now) = (profile.pre_enqueue(&pod).err().map(|r| r.plugin), Instant::now());
        if !pod.nominated_node.is_empty() && self.cluster.nominated_node(&pod.uid).is_none() && old.is_none() {
            self.cluster.nominate(pod.clone(), &pod.nominated_node);
        }
        let Some(old) = self.queue.replace(pod.clone()) else {
            return self.queue.add(pod, gated_by, now);
        };
        self.queue.reconsider_gate(&pod.uid, gated_by, now);
        let change = Change::OwnUpdated { old, new: pod.clone() };
        let cluster = &self.cluster;
        self.queue.wake_one(&pod.uid, now, |w| helps(cluster, &profile, w, &change));
    }

    fn pod_gone(&mut self, pod: &Arc<PodInfo>) {
        self.queue.remove(&pod.uid);
        self.cluster.withdraw(&pod.uid);
        if let Some(moved) = self.cluster.unplace(&pod.uid) {
            let gone = moved.pod.clone();
            self.count(&[moved]);
            self.changed(&Change::PodDeleted(gone));
        }
    }

    fn count(&mut self, moves: &[Moved]) {
        for moved in moves {
            self.memory.moved(&self.cluster, moved);
        }
    }

    /// Wakes pods that the change may let through.
    fn changed(&mut self, change: &Change) {
        let (cluster, profiles) = (&self.cluster, &self.profiles);
        self.queue.wake_where(Instant::now(), |w| {
            profiles.get(&*w.pod.scheduler_name).is_some_and(|profile| helps(cluster, profile, w, change))
        });
    }

    fn schedule(&mut self, waiting: Waiting) {
        let pod = waiting.pod.clone();
        let Some(profile) = self.profiles.get(&*pod.scheduler_name).cloned() else { return };
        let _span = tracing::debug_span!("schedule", pod = %pod.key).entered();
        let outcome = cycle::schedule(&self.cluster, &profile, &mut self.memory, &pod, &mut self.start);
        let (node, state) = match outcome {
            Outcome::Fits { node, state } => (self.cluster.at(node).node().name.clone(), state),
            Outcome::Unfit(failure) => return self.failed(waiting, &profile, failure),
        };
        if let Err(rejection) = profile.reserve(&self.cluster, &pod, &state, &node) {
            return self.failed(waiting, &profile, Failure::rejected(&rejection));
        }
        drop(state);
        tracing::debug!(node = &*node, attempts = waiting.attempts, "a pod has found its node");
        let assumed = Arc::new(pod.on_node(&node));
        self.cluster.withdraw(&pod.uid);
        let moves = self.cluster.place(assumed.clone(), true);
        self.count(&moves);
        self.changed(&Change::PodAssigned(assumed.clone()));
        self.bindings += 1;
        self.calls.send(Call::Bind { waiting: Box::new(waiting), pod: assumed, profile });
    }

    fn failed(&mut self, mut waiting: Waiting, profile: &Profile, failure: Failure) {
        let pod = waiting.pod.clone();
        let now = Instant::now();
        tracing::debug!(pod = %pod.key, message = failure.message, "a pod cannot be scheduled");
        let what = ("Warning", "FailedScheduling", "Scheduling");
        self.recorder.record(&pod, None, what, &profile.scheduler_name, &failure.message);
        let mut nominated = None;
        if let Some(preemption) = &failure.preemption {
            self.preempt(&pod, preemption);
            nominated = Some(preemption.node.clone());
        } else if failure.clear_nomination {
            self.cluster.withdraw(&pod.uid);
            nominated = Some("".into()).filter(|_| !pod.nominated_node.is_empty());
        }
        let condition = Scheduled {
            status: "False".into(),
            reason: if failure.unschedulable { "Unschedulable" } else { "SchedulerError" }.into(),
            message: failure.message.as_str().into(),
            observed_generation: pod.generation,
        };
        if pod.scheduled.as_ref() != Some(&condition) || nominated.as_ref().is_some_and(|n| *n != pod.nominated_node) {
            self.calls.send(Call::Condition { pod: pod.clone(), condition, nominated });
        }
        // It may have been deleted, bound or changed while it was tried.
        let Some(current) = self.pods.get(&pod.key.namespace, &pod.key.name) else { return };
        if current.uid != pod.uid || current.node().is_some() || current.finished || current.deleting {
            return;
        }
        let plugins = if failure.unschedulable && failure.plugins.is_empty() {
            // Without nodes only a node can help; one of the plugins that hear of new nodes speaks for all.
            BTreeSet::from([crate::plugins::node_name::NAME])
        } else {
            failure.plugins
        };
        waiting.pod = current;
        self.queue.put_back(waiting, plugins, !failure.unschedulable, now);
    }

    fn preempt(&mut self, pod: &Arc<PodInfo>, preemption: &crate::framework::Preemption) {
        // Whoever was promised the place with a lower priority has to look for another.
        let lower: Vec<Arc<PodInfo>> =
            self.cluster.nominated(&preemption.node).iter().filter(|p| p.priority < pod.priority).cloned().collect();
        for other in lower {
            self.cluster.withdraw(&other.uid);
            self.calls.send(Call::ClearNomination { pod: other });
        }
        self.cluster.nominate(pod.clone(), &preemption.node);
        for victim in preemption.victims.iter().filter(|v| !v.deleting) {
            let call = Call::Evict { victim: victim.clone(), preemptor: pod.clone(), node: preemption.node.clone() };
            self.calls.send(call);
            // It counts as leaving from now on, lest another round evict more while the server does not know yet.
            let mut leaving = (**victim).clone();
            leaving.deleting = true;
            let moves = self.cluster.place(Arc::new(leaving), self.cluster.is_assumed(&victim.uid));
            self.count(&moves);
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Bound(bound) => self.bound(bound),
            Done::Spared(victim) => {
                if let Some(pod) = self.pods.get_key(&victim.key).filter(|p| p.uid == victim.uid) {
                    self.pod_is(None, pod);
                }
            }
        }
    }

    fn bound(&mut self, bound: Bound) {
        self.bindings -= 1;
        bound.profile.unreserve(&bound.pod);
        let Some((message, unschedulable)) = bound.failure else { return };
        if self.cluster.is_assumed(&bound.pod.uid)
            && let Some(moved) = self.cluster.unplace(&bound.pod.uid)
        {
            let gone = moved.pod.clone();
            self.count(&[moved]);
            self.changed(&Change::PodDeleted(gone));
        }
        let key: &ObjectKey = &bound.pod.key;
        if self.pods.get_key(key).is_none_or(|p| p.uid != bound.pod.uid || p.node().is_some()) {
            return;
        }
        let failure =
            Failure { unschedulable, message, plugins: BTreeSet::new(), preemption: None, clear_nomination: false };
        self.failed(*bound.waiting, &bound.profile, failure);
    }
}

fn helps(cluster: &Cluster, profile: &Profile, waiting: &Waiting, change: &Change) -> bool {
    let mut rejecting = waiting.plugins.iter().filter_map(|name| profile.plugin(name));
    rejecting.any(|plugin| plugin.may_help(cluster, &waiting.pod, change))
}
