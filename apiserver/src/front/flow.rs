//! How many requests are served at once, and which flow schema a request belongs to (upstream: the max-in-flight filter and
//! API Priority and Fairness).
//!
//! Requests beyond the bound wait a little and are then refused, except those of `system:masters`, who must be able to mend
//! a server that is overloaded. Fair queuing by priority level is not done; the schema that a request matches is reported.

use crate::authentication::MASTERS;
use crate::request::{RequestInfo, User};
use crate::resources::Resources;
use coxswain_api::{Status, Value};
use http::HeaderValue;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a request waits for its turn.
const WAIT: Duration = Duration::from_secs(15);
/// How many may wait; beyond it they are refused at once.
const WAITING_MAX: usize = 10_000;
const GROUP: &str = "flowcontrol.apiserver.k8s.io";

pub struct Flow {
    seats: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    schemas: parking_lot::Mutex<Arc<Schemas>>,
}

/// The flow schemas in the order in which they are tried.
#[derive(Default)]
struct Schemas {
    /// The revisions of both resources that this was made of.
    version: (u64, u64),
    list: Vec<Schema>,
}

struct Schema {
    uid: HeaderValue,
    level_uid: HeaderValue,
    rules: Vec<Rule>,
}

impl Flow {
    pub fn new(in_flight_max: usize) -> Self {
        Self {
            seats: Arc::new(Semaphore::new(in_flight_max)),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            schemas: parking_lot::Mutex::default(),
        }
    }

    /// A seat for the time of a request; none for those who need none.
    pub async fn enter(&self, user: &User) -> Result<Option<OwnedSemaphorePermit>, Status> {
        if user.in_group(MASTERS) {
            return Ok(None);
        }
        if let Ok(seat) = self.seats.clone().try_acquire_owned() {
            return Ok(Some(seat));
        }
        let refused = || Status::too_many_requests("Too many requests, please try again later.", 1);
        let _place = self.waiting.try_acquire().map_err(|_| refused())?;
        match tokio::time::timeout(WAIT, self.seats.clone().acquire_owned()).await {
            Ok(Ok(seat)) => Ok(Some(seat)),
            _ => Err(refused()),
        }
    }

    /// The uids of the flow schema and the priority level of a request.
    pub fn classify(&self, resources: &Resources, user: &User, info: &RequestInfo) -> (HeaderValue, HeaderValue) {
        let schemas = self.schemas(resources);
        let found = schemas.list.iter().find(|s| s.rules.iter().any(|r| r.matches(user, info)));
        match found {
            Some(schema) => (schema.uid.clone(), schema.level_uid.clone()),
            None => (HeaderValue::from_static(""), HeaderValue::from_static("")),
        }
    }

    fn schemas(&self, resources: &Resources) -> Arc<Schemas> {
        let (Some(schemas), Some(levels)) =
            (resources.store(GROUP, "flowschemas"), resources.store(GROUP, "prioritylevelconfigurations"))
        else {
            return Arc::default();
        };
        let version = (schemas.cache().changed().0, levels.cache().changed().0);
        let mut kept = self.schemas.lock();
        if kept.version != version {
            let uid = |tree: &Value| {
                let uid = tree.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
                HeaderValue::from_str(uid).unwrap_or(HeaderValue::from_static(""))
            };
            let progress = schemas.feed().progress();
            let level_uids: Vec<(String, HeaderValue)> = levels
                .cache()
                .snapshot(progress)
                .objects
                .values()
                .map(|o| (o.name().to_owned(), uid(&o.tree())))
                .collect();
            let mut list: Vec<(i64, String, Schema)> = schemas
                .cache()
                .snapshot(progress)
                .objects
                .values()
                .map(|o| {
                    let tree = o.tree();
                    let level = tree.pointer("/spec/priorityLevelConfiguration/name").and_then(Value::as_str);
                    let level_uid = level_uids.iter().find(|(n, _)| Some(n.as_str()) == level).map(|(_, u)| u.clone());
                    let precedence = tree.pointer("/spec/matchingPrecedence").and_then(Value::as_i64).unwrap_or(1000);
                    let rules = items(&tree["spec"], "rules").map(Rule::parse).collect();
                    let level_uid = level_uid.unwrap_or(HeaderValue::from_static(""));
                    (precedence, o.name().to_owned(), Schema { uid: uid(&tree), level_uid, rules })
                })
                .collect();
            list.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
            *kept = Arc::new(Schemas { version, list: list.into_iter().map(|(_, _, s)| s).collect() });
        }
        kept.clone()
    }
}

/// One rule of a flow schema, read once so that a request costs comparisons only.
struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

enum Subject {
    User(Names),
    Group(Names),
    ServiceAccount { namespace: String, name: Names },
}

struct ResourceRule {
    verbs: Names,
    groups: Names,
    resources: Names,
    cluster: bool,
    namespaces: Names,
}

struct PathRule {
    verbs: Names,
    patterns: Vec<String>,
}

/// Names that a rule lists, of which `*` is any.
struct Names {
    any: bool,
    list: Vec<String>,
}

impl Names {
    fn of(names: impl Iterator<Item = String>) -> Self {
        let list: Vec<String> = names.collect();
        Self { any: list.iter().any(|n| n == "*"), list }
    }

    fn one(value: &Value, path: &str) -> Self {
        Self::of(std::iter::once(text(value, path).to_owned()))
    }

    fn listed(value: &Value, field: &str) -> Self {
        Self::of(items(value, field).filter_map(Value::as_str).map(str::to_owned))
    }

    fn has(&self, name: &str) -> bool {
        self.any || self.list.iter().any(|n| n == name)
    }

    /// Whether `resource/subresource` is listed, or the resource where there is no subresource.
    fn has_resource(&self, resource: &str, subresource: &str) -> bool {
        if subresource.is_empty() {
            return self.has(resource);
        }
        self.any || self.list.iter().any(|n| n.split_once('/') == Some((resource, subresource)))
    }
}

fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

impl Rule {
    fn parse(rule: &Value) -> Self {
        let subject = |s: &Value| match text(s, "/kind") {
            "User" => Some(Subject::User(Names::one(s, "/user/name"))),
            "Group" => Some(Subject::Group(Names::one(s, "/group/name"))),
            "ServiceAccount" => Some(Subject::ServiceAccount {
                namespace: text(s, "/serviceAccount/namespace").to_owned(),
                name: Names::one(s, "/serviceAccount/name"),
            }),
            _ => None,
        };
        let resource = |r: &Value| ResourceRule {
            verbs: Names::listed(r, "verbs"),
            groups: Names::listed(r, "apiGroups"),
            resources: Names::listed(r, "resources"),
            cluster: r.get("clusterScope").and_then(Value::as_bool).unwrap_or(false),
            namespaces: Names::listed(r, "namespaces"),
        };
        let path = |r: &Value| PathRule {
            verbs: Names::listed(r, "verbs"),
            patterns: items(r, "nonResourceURLs").filter_map(Value::as_str).map(str::to_owned).collect(),
        };
        Self {
            subjects: items(rule, "subjects").filter_map(subject).collect(),
            resources: items(rule, "resourceRules").map(resource).collect(),
            paths: items(rule, "nonResourceRules").map(path).collect(),
        }
    }

    /// Whether the subjects are meant, and what is asked.
    fn matches(&self, user: &User, info: &RequestInfo) -> bool {
        if !self.subjects.iter().any(|s| s.is(user)) {
            return false;
        }
        if info.is_resource {
            return self.resources.iter().any(|r| {
                let place = if info.namespace.is_empty() { r.cluster } else { r.namespaces.has(&info.namespace) };
                place
                    && r.verbs.has(&info.verb)
                    && r.groups.has(&info.group)
                    && r.resources.has_resource(&info.resource, &info.subresource)
            });
        }
        self.paths.iter().any(|r| {
            let covers = |pattern: &String| {
                pattern == "*"
                    || *pattern == info.path
                    || pattern.strip_suffix('*').is_some_and(|prefix| info.path.starts_with(prefix))
            };
            r.patterns.iter().any(covers) && r.verbs.has(&info.verb)
        })
    }
}

impl Subject {
    fn is(&self, user: &User) -> bool {
        match self {
            Subject::User(names) => names.has(&user.name),
            Subject::Group(names) => names.any || user.groups.iter().any(|g| names.has(g)),
            Subject::ServiceAccount { namespace, name } => user
                .name
                .strip_prefix("system:serviceaccount:")
                .and_then(|u| u.split_once(':'))
                .is_some_and(|(ns, n)| ns == namespace && name.has(n)),
        }
    }
}
