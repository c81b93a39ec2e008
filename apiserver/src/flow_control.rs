//! How many requests are served at once, and in which order (upstream: API Priority and Fairness,
//! `apiserver/pkg/util/flowcontrol` and `server/filters/priority-and-fairness.go`).
//!
//! A flow schema takes a request and names its priority level, which has seats and queues of its own: whoever floods one level
//! is refused there, and others are served. What a level decides is a matter of [`queue_set`], how many seats it has one of
//! [`limits`]; here are the waiting and the objects that configure both. A request of `system:masters` is exempt by a schema
//! that always exists.
//!
//! Upstream counts a write that many watch for more than one seat, since sending it to them costs much; here it does not.

pub mod in_flight;
mod limits;
mod metrics;
mod queue_set;
mod retry_after;
mod rules;

use crate::authentication::MASTERS;
use crate::registry::options::Query;
use crate::request::{RequestInfo, User};
use crate::resources::Resources;
use crate::store::Store;
use arc_swap::ArcSwap;
use coxswain_api::{Value, json};
use http::HeaderValue;
use limits::{Bounds, Demand};
use metrics::Counts;
use parking_lot::Mutex;
use queue_set::{QueueSet, Reason, Shape, Ticket};
use retry_after::RetryAfter;
use rules::{Rule, items};
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// How often seats are dealt anew.
const DEAL_PAUSE: Duration = Duration::from_secs(10);
/// No request waits longer for a seat, and none longer than this part of the time it has.
const WAIT_MAX: Duration = Duration::from_secs(60);
const WAIT_PART: u32 = 4;
/// A list of many objects takes a seat for so many bytes of them…
const BYTES_PER_SEAT: usize = 100_000;
/// …up to so many seats, and no more than a part of its level's.
const SEATS_MAX: usize = 10;
const SEATS_PART_MAX: f64 = 0.15;

pub struct FlowControl {
    /// `--max-requests-inflight` and `--max-mutating-requests-inflight` together.
    seats: usize,
    started: Instant,
    stores: OnceLock<[Arc<Store>; 2]>,
    config: ArcSwap<Config>,
    /// Held by whoever changes the configuration, with the time at which seats are next dealt.
    dealing: Mutex<Duration>,
}

/// The schemas in the order in which they are tried, and the levels.
#[derive(Default)]
struct Config {
    /// The revisions of both resources that this was made of.
    version: [u64; 2],
    schemas: Vec<Arc<Schema>>,
    levels: BTreeMap<Box<str>, Arc<Level>>,
}

/// A flow schema and what it has counted.
pub struct Schema {
    name: Box<str>,
    pub uid: HeaderValue,
    pub level_uid: HeaderValue,
    level: Arc<Level>,
    distinguisher: Distinguisher,
    rules: Vec<Rule>,
    counts: Arc<Counts>,
}

/// What makes requests of one schema belong to different flows.
enum Distinguisher {
    Nothing,
    User,
    Namespace,
}

struct Level {
    name: Box<str>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    exempt: bool,
    bounds: Bounds,
    set: QueueSet,
    demand: Demand,
    /// How those who wait are told that they may begin.
    wakers: HashMap<Ticket, oneshot::Sender<()>>,
    retry_after: RetryAfter,
}

/// A request was refused; its client may try again after so many seconds.
#[derive(Debug)]
pub struct Refused {
    pub retry_after: u64,
}

/// A request's place: in a queue, then among those that are served. It is given back when this is dropped, so that a client
/// who goes away while it waits leaves nothing behind.
pub struct Seat {
    schema: Arc<Schema>,
    started: Instant,
    /// None for those who are exempt.
    ticket: Option<Ticket>,
    seats: usize,
    serving: bool,
}

impl FlowControl {
    pub fn new(seats: usize) -> Self {
        Self {
            seats: seats.max(1),
            started: Instant::now(),
            stores: OnceLock::new(),
            config: ArcSwap::default(),
            dealing: Mutex::new(DEAL_PAUSE),
        }
    }

    /// The schema that takes a request.
    pub fn classify(&self, resources: &Resources, user: &User, info: &RequestInfo) -> Arc<Schema> {
        let config = self.config(resources);
        let found = config.schemas.iter().find(|s| s.rules.iter().any(|rule| rule.matches(user, info)));
        // The last two are there whatever is configured: one for masters, one for all others.
        let fallback = || config.schemas.len() - if user.in_group(MASTERS) { 2 } else { 1 };
        found.unwrap_or_else(|| &config.schemas[fallback()]).clone()
    }

    /// Waits for a seat, and for as many of them as a long list needs.
    pub async fn enter(
        &self,
        schema: &Arc<Schema>,
        user: &User,
        info: &RequestInfo,
        seats: usize,
        timeout: Duration,
    ) -> Result<Seat, Refused> {
        let level = &schema.level;
        let mut seat = Seat { schema: schema.clone(), started: self.started, ticket: None, seats, serving: true };
        let turn = {
            let now = self.started.elapsed();
            let mut state = level.state.lock();
            if state.exempt {
                schema.counts.begin(seats);
                return Ok(seat);
            }
            let most = (state.bounds.nominal as f64 * SEATS_PART_MAX).ceil() as usize;
            seat.seats = seats.clamp(1, most.clamp(1, SEATS_MAX));
            let ticket = match state.set.arrive(schema.flow(user, info), seat.seats, now) {
                Ok(ticket) => ticket,
                Err(reason) => {
                    schema.counts.refuse(reason);
                    seat.serving = false;
                    return Err(Refused { retry_after: state.retry_after.refused(now.as_secs()) });
                }
            };
            seat.ticket = Some(ticket);
            let (tell, told) = oneshot::channel();
            state.wakers.insert(ticket, tell);
            state.dispatch(now);
            told
        };
        seat.serving = false;
        schema.counts.wait();
        let arrived = Instant::now();
        let limit = (timeout / WAIT_PART).min(WAIT_MAX);
        let begins = matches!(tokio::time::timeout(limit, turn).await, Ok(Ok(())));
        schema.counts.waited(arrived.elapsed(), begins);
        if begins {
            schema.counts.begin(seat.seats);
            seat.serving = true;
            return Ok(seat);
        }
        schema.counts.refuse(Reason::TimeOut);
        let mut state = level.state.lock();
        Err(Refused { retry_after: state.retry_after.refused(self.started.elapsed().as_secs()) })
    }

    /// The configuration as the objects have it now, with seats dealt by recent demand.
    fn config(&self, resources: &Resources) -> Arc<Config> {
        let config = self.config.load_full();
        let stores = match self.stores.get() {
            Some(stores) => stores,
            None => {
                let found = ["flowschemas", "prioritylevelconfigurations"].map(|plural| resources.store(GROUP, plural));
                let [Some(schemas), Some(levels)] = found else { return self.without_objects(config) };
                self.stores.get_or_init(|| [schemas, levels])
            }
        };
        let now = self.started.elapsed();
        let version = [&stores[0], &stores[1]].map(|store| store.cache().changed().0);
        if config.version != version || config.schemas.is_empty() {
            let mut next_deal = self.dealing.lock();
            let config = self.config.load_full();
            if config.version == version && !config.schemas.is_empty() {
                return config;
            }
            let objects = [&stores[0], &stores[1]].map(|store| {
                let snapshot = store.cache().snapshot(store.feed().progress());
                snapshot.objects.values().map(|object| object.tree()).collect::<Vec<_>>()
            });
            let made = Arc::new(Config::of(version, &objects[0], &objects[1], &config, self.seats, now));
            self.config.store(made.clone());
            *next_deal = now + DEAL_PAUSE;
            return made;
        }
        if let Some(mut next_deal) = self.dealing.try_lock()
            && now >= *next_deal
        {
            *next_deal = now + DEAL_PAUSE;
            config.deal(self.seats, now);
        }
        config
    }

    /// Where the API of flow control is not served, what exists in any case is all there is.
    fn without_objects(&self, config: Arc<Config>) -> Arc<Config> {
        if !config.schemas.is_empty() {
            return config;
        }
        let made = Arc::new(Config::of([0; 2], &[], &[], &config, self.seats, self.started.elapsed()));
        self.config.store(made.clone());
        made
    }

    /// What is counted, in Prometheus' text form.
    pub fn render(&self, out: &mut String) {
        let config = self.config.load_full();
        let schemas = config.schemas.iter().map(|s| (&*s.level.name, &*s.name, &*s.counts));
        metrics::render_schemas(out, &schemas.collect::<Vec<_>>());
        let limits = config.levels.values().map(|level| {
            let state = level.state.lock();
            (&*level.name, state.bounds, state.set.limit())
        });
        metrics::render_levels(out, &limits.collect::<Vec<_>>());
    }
}

/// How many seats a request takes: more than one for what begins with many objects.
pub fn seats(resources: &Resources, info: &RequestInfo, query: &Query) -> usize {
    let begins_with_state = || {
        matches!(query.first("resourceVersion"), None | Some("" | "0"))
            || query.first("sendInitialEvents") == Some("true")
    };
    match info.verb.as_str() {
        "list" if info.name.is_empty() => {}
        "watch" if info.name.is_empty() && begins_with_state() => {}
        _ => return 1,
    }
    let Some(store) = resources.store(&info.group, &info.resource) else { return 1 };
    let snapshot = store.cache().snapshot(store.feed().progress());
    let limit = query.first("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    let count = snapshot.objects.len().min(limit.unwrap_or(usize::MAX));
    // One object stands for all.
    let size = snapshot.objects.get_min().map_or(0, |(_, object)| object.size());
    count.saturating_mul(size).div_ceil(BYTES_PER_SEAT).clamp(1, SEATS_MAX)
}

impl Config {
    fn of(
        version: [u64; 2],
        schemas: &[Arc<Value>],
        levels: &[Arc<Value>],
        before: &Config,
        seats: usize,
        now: Duration,
    ) -> Self {
        let mut specs: BTreeMap<String, LevelSpec> =
            levels.iter().map(|object| (name(object), LevelSpec::read(object))).collect();
        // Both exist whether or not their objects do.
        specs.entry("exempt".into()).or_insert_with(|| LevelSpec::read(&json!({"spec": {"type": "Exempt"}})));
        specs.entry("catch-all".into()).or_insert_with(|| {
            LevelSpec::read(&json!({"spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 5}}}))
        });
        let all_shares = specs.values().map(|spec| spec.shares).sum();
        let made = specs.iter().map(|(name, spec)| {
            let level = before.levels.get(name.as_str()).cloned().unwrap_or_else(|| Arc::new(Level::new(name)));
            let bounds = limits::bounds(seats, spec.shares, all_shares, spec.lendable, spec.borrowing);
            let mut state = level.state.lock();
            state.exempt = spec.exempt;
            // A level that has been here before keeps what it was dealt, as far as it may.
            let dealt = if state.bounds == bounds { state.set.limit() } else { bounds.nominal };
            state.bounds = bounds;
            state.set.configure(spec.shape, dealt, now);
            state.dispatch(now);
            drop(state);
            (name.as_str().into(), level)
        });
        let levels: BTreeMap<Box<str>, Arc<Level>> = made.collect();
        let counts = |name: &str, level: &Arc<Level>| {
            let same = before.schemas.iter().find(|s| &*s.name == name && Arc::ptr_eq(&s.level, level));
            same.map(|schema| schema.counts.clone()).unwrap_or_default()
        };
        let mut ordered: Vec<(i64, Arc<Schema>)> = schemas
            .iter()
            .filter_map(|object| {
                let spec = &object["spec"];
                let level_name = spec["priorityLevelConfiguration"]["name"].as_str()?;
                // One that names a level that does not exist takes nothing.
                let level = levels.get(level_name)?.clone();
                let schema = Schema {
                    name: name(object).into(),
                    uid: uid(object),
                    level_uid: specs.get(level_name).map_or(HeaderValue::from_static(""), |spec| spec.uid.clone()),
                    distinguisher: match spec["distinguisherMethod"]["type"].as_str() {
                        Some("ByUser") => Distinguisher::User,
                        Some("ByNamespace") => Distinguisher::Namespace,
                        _ => Distinguisher::Nothing,
                    },
                    rules: items(spec, "rules").map(Rule::parse).collect(),
                    counts: counts(&name(object), &level),
                    level,
                };
                Some((spec["matchingPrecedence"].as_i64().unwrap_or(1000), Arc::new(schema)))
            })
            .collect();
        ordered.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
        let mut schemas: Vec<Arc<Schema>> = ordered.into_iter().map(|(_, schema)| schema).collect();
        for (name, distinguisher) in [("exempt", Distinguisher::Nothing), ("catch-all", Distinguisher::User)] {
            let level = levels[name].clone();
            let present = schemas.iter().find(|s| &*s.name == name && Arc::ptr_eq(&s.level, &level));
            let last = present.cloned().unwrap_or_else(|| {
                Arc::new(Schema {
                    name: name.into(),
                    uid: HeaderValue::from_static(""),
                    level_uid: specs[name].uid.clone(),
                    counts: counts(name, &level),
                    level,
                    distinguisher,
                    rules: Vec::new(),
                })
            });
            schemas.push(last);
        }
        Self { version, schemas, levels }
    }

    /// Deals the seats anew.
    fn deal(&self, seats: usize, now: Duration) {
        let exempt = self.schemas.iter().filter(|s| s.level.state.lock().exempt).map(|s| s.counts.seats()).sum();
        let limited: Vec<&Arc<Level>> = self.levels.values().filter(|level| !level.state.lock().exempt).collect();
        let wanted: Vec<_> = limited
            .iter()
            .map(|level| {
                let mut state = level.state.lock();
                (state.bounds, state.demand.look(now))
            })
            .collect();
        for (level, limit) in limited.iter().zip(limits::share(seats, exempt, &wanted)) {
            let mut state = level.state.lock();
            state.set.set_limit(limit, now);
            state.dispatch(now);
        }
    }
}

/// What a priority level's object says.
struct LevelSpec {
    uid: HeaderValue,
    exempt: bool,
    shares: u64,
    lendable: u64,
    borrowing: Option<u64>,
    shape: Shape,
}

impl LevelSpec {
    fn read(object: &Value) -> Self {
        let spec = &object["spec"];
        let exempt = spec["type"] == "Exempt";
        let limits = if exempt { &spec["exempt"] } else { &spec["limited"] };
        let queuing = &limits["limitResponse"]["queuing"];
        let size = |field: &str, default: usize| {
            queuing[field].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(default)
        };
        let shape = match limits["limitResponse"]["type"] == "Queue" {
            true => Shape {
                queues: size("queues", 64),
                hand: size("handSize", 8),
                length_max: size("queueLengthLimit", 50),
            },
            false => Shape::default(),
        };
        Self {
            uid: uid(object),
            exempt,
            shares: limits["nominalConcurrencyShares"].as_u64().unwrap_or(if exempt { 0 } else { 30 }),
            lendable: limits["lendablePercent"].as_u64().unwrap_or(0),
            borrowing: limits["borrowingLimitPercent"].as_u64(),
            shape,
        }
    }
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn uid(object: &Value) -> HeaderValue {
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
    HeaderValue::from_str(uid).unwrap_or(HeaderValue::from_static(""))
}

impl Schema {
    /// Tells the flows of all schemas apart.
    fn flow(&self, user: &User, info: &RequestInfo) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.name.hash(&mut hasher);
        match self.distinguisher {
            Distinguisher::Nothing => {}
            Distinguisher::User => user.name.hash(&mut hasher),
            Distinguisher::Namespace => info.namespace.hash(&mut hasher),
        }
        hasher.finish()
    }
}

impl Level {
    fn new(name: &str) -> Self {
        Self { name: name.into(), state: Mutex::default() }
    }
}

impl State {
    /// Lets begin all who may.
    fn dispatch(&mut self, now: Duration) {
        while let Some(ticket) = self.set.dispatch(now) {
            // Nobody listens if the client has just gone away; its place is then given back by whoever held it.
            if let Some(waker) = self.wakers.remove(&ticket) {
                let _ = waker.send(());
            }
        }
        self.demand.set(self.set.demand(), now);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.serving {
            self.schema.counts.end(self.seats);
        }
        let Some(ticket) = self.ticket else { return };
        let now = self.started.elapsed();
        let mut state = self.schema.level.state.lock();
        state.wakers.remove(&ticket);
        if !state.set.give_up(ticket, now) {
            state.set.finish(ticket, now);
        }
        state.dispatch(now);
    }
}

#[cfg(test)]
mod tests;
