//! Pods that wait to be scheduled: those that are due, those that back off after an attempt, and those that nothing has
//! happened for since they fitted nowhere. The counterpart of upstream's `PriorityQueue`. Each pod is in it once at most.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pod::PodInfo;

/// A pod that waits this long without an event that could help is tried anyway.
pub const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(300);

type Order = (Reverse<i32>, Instant, u64, Box<str>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active,
    Backoff,
    Unschedulable,
    /// A plugin does not let it in.
    Gated,
}

#[derive(Debug)]
pub struct Waiting {
    pub pod: Arc<PodInfo>,
    pub attempts: u32,
    /// Who rejected it last.
    pub plugins: BTreeSet<&'static str>,
    /// Whether the last attempt broke, so that trying at once would break again.
    pub erred: bool,
    place: Place,
    since: Instant,
    ready: Instant,
    sequence: u64,
}

pub struct Queue {
    waiting: HashMap<Box<str>, Waiting>,
    active: BTreeSet<Order>,
    backoff: BTreeSet<(Instant, u64, Box<str>)>,
    /// Those that wait for something to happen.
    parked: BTreeSet<Box<str>>,
    initial_backoff: Duration,
    backoff_max: Duration,
    sequence: u64,
}

impl Queue {
    pub fn new(initial_backoff: Duration, backoff_max: Duration) -> Self {
        Self {
            waiting: HashMap::new(),
            active: BTreeSet::new(),
            backoff: BTreeSet::new(),
            parked: BTreeSet::new(),
            initial_backoff,
            backoff_max,
            sequence: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn contains(&self, uid: &str) -> bool {
        self.waiting.contains_key(uid)
    }

    fn order(waiting: &Waiting) -> Order {
        (Reverse(waiting.pod.priority), waiting.since, waiting.sequence, waiting.pod.uid.clone())
    }

    fn detach(&mut self, uid: &str) -> Option<Waiting> {
        let waiting = self.waiting.remove(uid)?;
        match waiting.place {
            Place::Active => drop(self.active.remove(&Self::order(&waiting))),
            Place::Backoff => drop(self.backoff.remove(&(waiting.ready, waiting.sequence, waiting.pod.uid.clone()))),
            Place::Unschedulable => drop(self.parked.take(uid)),
            Place::Gated => {}
        }
        Some(waiting)
    }

    fn attach(&mut self, mut waiting: Waiting, place: Place) {
        waiting.place = place;
        match place {
            Place::Active => drop(self.active.insert(Self::order(&waiting))),
            Place::Backoff => drop(self.backoff.insert((waiting.ready, waiting.sequence, waiting.pod.uid.clone()))),
            Place::Unschedulable => drop(self.parked.replace(waiting.pod.uid.clone())),
            Place::Gated => {}
        }
        self.waiting.insert(waiting.pod.uid.clone(), waiting);
    }

    /// Lets a new pod in, or keeps it out if a plugin (`gated_by`) does.
    pub fn add(&mut self, pod: Arc<PodInfo>, gated_by: Option<&'static str>, now: Instant) {
        self.sequence += 1;
        let waiting = Waiting {
            pod,
            attempts: 0,
            plugins: gated_by.into_iter().collect(),
            erred: false,
            place: Place::Gated,
            since: now,
            ready: now,
            sequence: self.sequence,
        };
        self.detach(&waiting.pod.uid.clone());
        self.attach(waiting, if gated_by.is_some() { Place::Gated } else { Place::Active });
    }

    /// Takes the new version of a pod that waits. Returns the old one.
    pub fn replace(&mut self, pod: Arc<PodInfo>) -> Option<Arc<PodInfo>> {
        let mut waiting = self.detach(&pod.uid)?;
        let place = waiting.place;
        let old = std::mem::replace(&mut waiting.pod, pod);
        self.attach(waiting, place);
        Some(old)
    }

    pub fn remove(&mut self, uid: &str) -> Option<Waiting> {
        self.detach(uid)
    }

    /// The pod to try next. One that backs off is tried early if nothing else is due, unless its last attempt broke.
    pub fn pop(&mut self, now: Instant) -> Option<Waiting> {
        while let Some((ready, _, uid)) = self.backoff.first().cloned().filter(|(ready, ..)| *ready <= now) {
            debug_assert!(ready <= now);
            if let Some(waiting) = self.detach(&uid) {
                self.attach(waiting, Place::Active);
            }
        }
        let uid = match self.active.first() {
            Some((.., uid)) => uid.clone(),
            None => {
                let early = |uid: &str| self.waiting.get(uid).is_some_and(|w| !w.erred);
                self.backoff.iter().map(|(.., uid)| uid).find(|uid| early(uid))?.clone()
            }
        };
        let mut waiting = self.detach(&uid)?;
        waiting.attempts += 1;
        Some(waiting)
    }

    /// When the next pod that backs off is due.
    pub fn next_ready(&self) -> Option<Instant> {
        self.backoff.first().map(|(ready, ..)| *ready)
    }

    /// Takes back a pod after an attempt that failed. Without plugins that rejected it, something was broken: it is tried
    /// again after its back-off; otherwise when something happens.
    pub fn put_back(&mut self, mut waiting: Waiting, plugins: BTreeSet<&'static str>, erred: bool, now: Instant) {
        let doubled = self.initial_backoff.saturating_mul(1 << (waiting.attempts.max(1) - 1).min(16));
        self.sequence += 1;
        waiting.sequence = self.sequence;
        waiting.since = now;
        waiting.ready = now + doubled.min(self.backoff_max);
        waiting.erred = erred;
        waiting.plugins = plugins;
        let place = if waiting.plugins.is_empty() || erred { Place::Backoff } else { Place::Unschedulable };
        self.attach(waiting, place);
    }

    fn wake(&mut self, uid: &str, now: Instant) {
        if let Some(waiting) = self.detach(uid) {
            let place = if waiting.ready > now { Place::Backoff } else { Place::Active };
            self.attach(waiting, place);
        }
    }

    /// Something happened: pods for which it may help, as `helps` says, are to be tried.
    pub fn wake_where(&mut self, now: Instant, helps: impl Fn(&Waiting) -> bool) {
        let helped = |uid: &str| self.waiting.get(uid).is_some_and(&helps);
        let woken: Vec<Box<str>> = self.parked.iter().filter(|uid| helped(uid)).cloned().collect();
        for uid in woken {
            self.wake(&uid, now);
        }
    }

    /// The same for one pod.
    pub fn wake_one(&mut self, uid: &str, now: Instant, helps: impl Fn(&Waiting) -> bool) {
        if self.waiting.get(uid).is_some_and(|w| w.place == Place::Unschedulable && helps(w)) {
            self.wake(uid, now);
        }
    }

    /// Asks again whether a pod may enter.
    pub fn reconsider_gate(&mut self, uid: &str, gated_by: Option<&'static str>, now: Instant) {
        let Some(place) = self.waiting.get(uid).map(|w| w.place) else { return };
        match gated_by {
            None if place == Place::Gated => {
                if let Some(mut waiting) = self.detach(uid) {
                    waiting.since = now;
                    waiting.plugins.clear();
                    self.attach(waiting, Place::Active);
                }
            }
            Some(plugin) if place != Place::Gated => {
                if let Some(mut waiting) = self.detach(uid) {
                    waiting.plugins = BTreeSet::from([plugin]);
                    self.attach(waiting, Place::Gated);
                }
            }
            _ => {}
        }
    }

    /// Pods that nothing has happened for in a long time are tried anyway.
    pub fn flush(&mut self, now: Instant) {
        self.wake_where(now, |w| now.duration_since(w.since) > UNSCHEDULABLE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, priority: i32) -> Arc<PodInfo> {
        Arc::new(PodInfo { uid: uid.into(), priority, ..PodInfo::default() })
    }

    fn queue() -> Queue {
        Queue::new(Duration::from_secs(1), Duration::from_secs(10))
    }

    #[test]
    fn higher_priorities_go_first_then_who_waited_longest() {
        let (mut queue, now) = (queue(), Instant::now());
        for (uid, priority) in [("a", 0), ("b", 5), ("c", 5), ("d", 0)] {
            queue.add(pod(uid, priority), None, now);
        }
        let order: String = std::iter::from_fn(|| queue.pop(now)).map(|w| w.pod.uid.to_string()).collect();
        assert_eq!(order, "bcad");
    }

    #[test]
    fn a_pod_that_fits_nowhere_waits_for_what_helps_and_backs_off_longer_each_time() {
        let (mut queue, now) = (queue(), Instant::now());
        queue.add(pod("a", 0), None, now);
        for attempt in 1..=6u32 {
            let waiting = queue.pop(now).expect("it is due, or early as nothing else is");
            assert_eq!(waiting.attempts, attempt);
            queue.put_back(waiting, BTreeSet::from(["Fit"]), false, now);
            assert!(queue.pop(now).is_none(), "nothing happened that helps");
            queue.wake_where(now, |w| w.plugins.contains("Other"));
            assert!(queue.next_ready().is_none());
            queue.wake_where(now, |w| w.plugins.contains("Fit"));
            let wait = queue.next_ready().expect("it backs off") - now;
            assert_eq!(wait, Duration::from_secs((1 << (attempt - 1)).min(10)));
        }
        let waiting = queue.pop(now).expect("it is early");
        queue.put_back(waiting, BTreeSet::new(), true, now);
        assert!(queue.pop(now).is_none(), "after an error it is not tried early");
        assert!(queue.pop(now + Duration::from_secs(10)).is_some());
    }

    #[test]
    fn a_gated_pod_enters_when_its_gate_opens() {
        let (mut queue, now) = (queue(), Instant::now());
        queue.add(pod("a", 0), Some("Gates"), now);
        queue.flush(now + UNSCHEDULABLE_MAX * 2);
        queue.wake_where(now, |_| true);
        assert!(queue.pop(now).is_none());
        queue.reconsider_gate("a", None, now);
        assert!(queue.pop(now).is_some());
    }
}
