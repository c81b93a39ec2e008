//! Which requests a flow schema takes (upstream: `pkg/util/flowcontrol/rule.go`).

use crate::request::{RequestInfo, User};
use coxswain_api::Value;

/// One rule of a flow schema, read once so that a request costs comparisons only.
pub(super) struct Rule {
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

pub(super) fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

impl Rule {
    pub(super) fn parse(rule: &Value) -> Self {
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
    pub(super) fn matches(&self, user: &User, info: &RequestInfo) -> bool {
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
