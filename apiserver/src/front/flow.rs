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
    rules: Vec<Value>,
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
        let found = schemas.list.iter().find(|s| s.rules.iter().any(|r| matches(r, user, info)));
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
                    let rules = tree.pointer("/spec/rules").and_then(Value::as_array).cloned().unwrap_or_default();
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

/// Whether one rule of a flow schema matches: its subjects, and what is asked.
fn matches(rule: &Value, user: &User, info: &RequestInfo) -> bool {
    let list = |value: &Value, field: &str| value.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let subject = list(rule, "subjects").iter().any(|subject| match text(subject, "/kind").as_str() {
        "User" => matches!(text(subject, "/user/name").as_str(), name if name == "*" || name == user.name),
        "Group" => matches!(text(subject, "/group/name").as_str(), name if name == "*" || user.in_group(name)),
        "ServiceAccount" => {
            let (namespace, name) = (text(subject, "/serviceAccount/namespace"), text(subject, "/serviceAccount/name"));
            let own = user.name.strip_prefix("system:serviceaccount:").and_then(|u| u.split_once(':'));
            own.is_some_and(|(ns, n)| ns == namespace && (name == "*" || name == n))
        }
        _ => false,
    });
    if !subject {
        return false;
    }
    let has = |rule: &Value, field: &str, wanted: &str| {
        list(rule, field).iter().any(|v| matches!(v.as_str(), Some(v) if v == "*" || v == wanted))
    };
    if info.is_resource {
        let resource = match info.subresource.as_str() {
            "" => info.resource.clone(),
            sub => format!("{}/{sub}", info.resource),
        };
        return list(rule, "resourceRules").iter().any(|r| {
            let place = if info.namespace.is_empty() {
                r.get("clusterScope").and_then(Value::as_bool).unwrap_or(false)
            } else {
                has(r, "namespaces", &info.namespace)
            };
            place && has(r, "verbs", &info.verb) && has(r, "apiGroups", &info.group) && has(r, "resources", &resource)
        });
    }
    list(rule, "nonResourceRules").iter().any(|r| {
        let path = list(r, "nonResourceURLs").iter().filter_map(Value::as_str).any(|pattern| {
            pattern == "*"
                || pattern == info.path
                || pattern.strip_suffix('*').is_some_and(|prefix| info.path.starts_with(prefix))
        });
        path && has(r, "verbs", &info.verb)
    })
}
