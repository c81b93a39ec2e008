//! Role-based access control (upstream: `plugin/pkg/auth/authorizer/rbac` and `pkg/registry/rbac/validation`).
//!
//! Roles and bindings are compiled into an index from subject to bindings, made anew when any of the four resources
//! changed. A request then costs what its own user's and groups' bindings cost.

use super::{Authorizer, Decision, Rules};
use crate::objects::Objects;
use crate::request::{RequestInfo, User};
use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use coxswain_api::Value;
use coxswain_api::field::go_quote;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;

pub const GROUP: &str = "rbac.authorization.k8s.io";
const RESOURCES: [&str; 4] = ["clusterroles", "clusterrolebindings", "roles", "rolebindings"];

/// One rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    pub fn parse(value: &Value) -> Self {
        let list = |key: &str| -> Vec<String> {
            value[key].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            verbs: list("verbs"),
            api_groups: list("apiGroups"),
            resources: list("resources"),
            resource_names: list("resourceNames"),
            non_resource_urls: list("nonResourceURLs"),
        }
    }

    /// The rules of a Role or ClusterRole.
    pub fn of_role(role: &Value) -> Vec<Rule> {
        role["rules"].as_array().into_iter().flatten().map(Rule::parse).collect()
    }

    fn to_value(&self) -> Value {
        let mut out = json!({"verbs": self.verbs});
        for (key, list) in [
            ("apiGroups", &self.api_groups),
            ("resources", &self.resources),
            ("resourceNames", &self.resource_names),
            ("nonResourceURLs", &self.non_resource_urls),
        ] {
            if !list.is_empty() {
                out[key] = json!(list);
            }
        }
        out
    }

    pub(super) fn allows(&self, request: &RequestInfo, combined: &str) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|v| v == "*" || v == wanted);
        if !request.is_resource {
            return has(&self.verbs, &request.verb)
                && self.non_resource_urls.iter().any(|u| covers_path(u, &request.path));
        }
        has(&self.verbs, &request.verb)
            && has(&self.api_groups, &request.group)
            && self.resources.iter().any(|r| {
                r == "*"
                    || r == combined
                    // `*/scale` is that subresource of every resource.
                    || (!request.subresource.is_empty() && r.strip_prefix("*/") == Some(&request.subresource))
            })
            && (self.resource_names.is_empty() || self.resource_names.contains(&request.name))
    }
}

fn covers_path(pattern: &str, path: &str) -> bool {
    pattern == "*"
        || pattern == path
        || pattern.strip_suffix('*').is_some_and(|start| path.starts_with(start.trim_end_matches('*')))
}

/// What a binding's subjects have in common, ready to decide with.
struct Bound {
    /// How a permission by this binding is explained, up to the subject.
    reason: String,
    /// None if the role does not exist (yet).
    rules: Option<Arc<Vec<Rule>>>,
    missing: String,
}

/// A binding as one of its subjects sees it.
#[derive(Clone)]
struct Grant {
    bound: Arc<Bound>,
    /// Place in the order of all bindings of its scope, which is the order they are asked in.
    order: usize,
    subject: Arc<str>,
}

#[derive(Default)]
struct Scope {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
}

impl Scope {
    /// The grants of a user, each binding once, in the order of bindings.
    fn of(&self, user: &User) -> Vec<&Grant> {
        let mut found: Vec<&Grant> = self.users.get(&user.name).into_iter().flatten().collect();
        for group in &user.groups {
            found.extend(self.groups.get(group).into_iter().flatten());
        }
        found.sort_by_key(|g| g.order);
        found.dedup_by_key(|g| g.order);
        found
    }
}

/// Everything derived from one state of the four resources.
#[derive(Default)]
struct Index {
    versions: [u64; 4],
    cluster: Scope,
    namespaces: HashMap<String, Scope>,
}

pub struct Rbac {
    objects: Arc<dyn Objects>,
    index: ArcSwapOption<Index>,
    building: parking_lot::Mutex<()>,
}

impl Rbac {
    pub fn new(objects: Arc<dyn Objects>) -> Self {
        Self { objects, index: ArcSwapOption::empty(), building: parking_lot::Mutex::new(()) }
    }

    fn versions(&self) -> [u64; 4] {
        RESOURCES.map(|r| self.objects.version(GROUP, r))
    }

    fn index(&self) -> Arc<Index> {
        let fresh = |index: &Option<Arc<Index>>| index.clone().filter(|i| i.versions == self.versions());
        if let Some(index) = fresh(&self.index.load_full()) {
            return index;
        }
        // One builds, the others wait: they need the result anyway.
        let _building = self.building.lock();
        if let Some(index) = fresh(&self.index.load_full()) {
            return index;
        }
        let index = Arc::new(self.build());
        self.index.store(Some(index.clone()));
        index
    }

    fn build(&self) -> Index {
        // Versions first: what changes while reading is then seen as newer, and read again.
        let mut index = Index { versions: self.versions(), ..Index::default() };
        let mut roles: HashMap<(String, String), Arc<Vec<Rule>>> = HashMap::new();
        for resource in ["clusterroles", "roles"] {
            for role in self.objects.list(GROUP, resource, None) {
                let meta = &role["metadata"];
                let key = (text(&meta["namespace"]).to_owned(), text(&meta["name"]).to_owned());
                roles.insert(key, Arc::new(Rule::of_role(&role)));
            }
        }
        for (kind, resource) in [("ClusterRoleBinding", "clusterrolebindings"), ("RoleBinding", "rolebindings")] {
            for (order, binding) in self.objects.list(GROUP, resource, None).iter().enumerate() {
                let namespace = text(&binding["metadata"]["namespace"]);
                let name = text(&binding["metadata"]["name"]);
                let role_kind = text(&binding["roleRef"]["kind"]);
                let role_name = text(&binding["roleRef"]["name"]);
                let role_namespace = if role_kind == "Role" { namespace } else { "" };
                let described = if namespace.is_empty() { name.to_owned() } else { format!("{name}/{namespace}") };
                let bound = Arc::new(Bound {
                    reason: format!(
                        "RBAC: allowed by {kind} {} of {role_kind} {} to ",
                        go_quote(&described),
                        go_quote(role_name)
                    ),
                    rules: roles.get(&(role_namespace.to_owned(), role_name.to_owned())).cloned(),
                    missing: format!(
                        "{}.{GROUP} {} not found",
                        if role_kind == "Role" { "role" } else { "clusterrole" },
                        go_quote(role_name)
                    ),
                });
                let scope = if namespace.is_empty() {
                    &mut index.cluster
                } else {
                    index.namespaces.entry(namespace.to_owned()).or_default()
                };
                for subject in binding["subjects"].as_array().into_iter().flatten() {
                    let name = text(&subject["name"]);
                    let grant = |described: String| Grant { bound: bound.clone(), order, subject: described.into() };
                    match text(&subject["kind"]) {
                        "User" => {
                            let grant = grant(format!("User {}", go_quote(name)));
                            scope.users.entry(name.to_owned()).or_default().push(grant);
                        }
                        "Group" => {
                            let grant = grant(format!("Group {}", go_quote(name)));
                            scope.groups.entry(name.to_owned()).or_default().push(grant);
                        }
                        "ServiceAccount" => {
                            // A service account without namespace is one of the binding's own.
                            let given = text(&subject["namespace"]);
                            let of = if given.is_empty() { namespace } else { given };
                            let user = crate::authentication::service_account::username(of, name);
                            let described = format!("ServiceAccount {}", go_quote(&format!("{name}/{of}")));
                            scope.users.entry(user).or_default().push(grant(described));
                        }
                        _ => {}
                    }
                }
            }
        }
        index
    }

    /// Calls `visit` with every rule of the user in `namespace`, cluster-wide ones first, until it returns false; what
    /// could not be resolved is reported as an error in between.
    fn visit<'i>(
        index: &'i Index,
        user: &User,
        namespace: &str,
        mut visit: impl FnMut(Result<(&'i Rule, &'i Grant), &'i str>) -> bool,
    ) -> bool {
        let scopes = [Some(&index.cluster), index.namespaces.get(namespace).filter(|_| !namespace.is_empty())];
        for scope in scopes.into_iter().flatten() {
            // The borrow of each grant is the index's own.
            for grant in scope.of(user) {
                match &grant.bound.rules {
                    Some(rules) => {
                        for rule in rules.iter() {
                            if !visit(Ok((rule, grant))) {
                                return false;
                            }
                        }
                    }
                    None => {
                        if !visit(Err(&grant.bound.missing)) {
                            return false;
                        }
                    }
                }
            }
        }
        true
    }

    /// All rules of a user in a namespace (`""`: the cluster-wide ones), and what could not be resolved.
    pub fn rules(&self, user: &User, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let index = self.index();
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        Self::visit(&index, user, namespace, |found| {
            match found {
                Ok((rule, _)) => rules.push(rule.clone()),
                Err(missing) => errors.push(missing.to_owned()),
            }
            true
        });
        (rules, errors)
    }

    /// The rules of a role that a binding in `namespace` refers to; the error is upstream's sentence.
    pub async fn role_rules(&self, role_ref: &Value, namespace: &str) -> Result<Vec<Rule>, coxswain_api::Status> {
        let name = text(&role_ref["name"]);
        let (resource, namespace) = match text(&role_ref["kind"]) {
            "Role" => ("roles", namespace),
            _ => ("clusterroles", ""),
        };
        match self.objects.get_consistent(GROUP, resource, namespace, name).await? {
            Some(role) => Ok(Rule::of_role(&role)),
            None => Err(coxswain_api::Status::not_found(GROUP, resource.trim_end_matches('s'), name)),
        }
    }
}

#[async_trait]
impl Authorizer for Rbac {
    async fn authorize(&self, user: &User, request: &RequestInfo) -> Decision {
        let index = self.index();
        let combined = if request.subresource.is_empty() {
            request.resource.clone()
        } else {
            format!("{}/{}", request.resource, request.subresource)
        };
        let mut decision = None;
        let mut errors: Vec<&str> = Vec::new();
        let namespace = if request.is_resource { request.namespace.as_str() } else { "" };
        Self::visit(&index, user, namespace, |found| {
            match found {
                Ok((rule, grant)) if rule.allows(request, &combined) => {
                    decision = Some(format!("{}{}", grant.bound.reason, grant.subject));
                    return false;
                }
                Ok(_) => {}
                Err(missing) if !errors.contains(&missing) => errors.push(missing),
                Err(_) => {}
            }
            true
        });
        match decision {
            Some(reason) => Decision::Allow(reason),
            None if errors.is_empty() => Decision::NoOpinion(String::new()),
            None => {
                let list = if errors.len() == 1 { errors[0].to_owned() } else { format!("[{}]", errors.join(", ")) };
                Decision::NoOpinion(format!("RBAC: {list}"))
            }
        }
    }

    fn rules_for(&self, user: &User, namespace: &str) -> Rules {
        let (rules, errors) = self.rules(user, namespace);
        let mut out = Rules { errors, ..Rules::default() };
        out.incomplete = !out.errors.is_empty();
        for rule in rules {
            let mut value = rule.to_value();
            // Like upstream: a rule with resources is listed there, one with paths there, in their own shapes.
            if !rule.resources.is_empty() {
                let mut resource = value.clone();
                resource.as_object_mut().map(|o| o.remove("nonResourceURLs"));
                out.resource.push(resource);
            }
            if !rule.non_resource_urls.is_empty() {
                if let Some(fields) = value.as_object_mut() {
                    fields.retain(|key, _| key == "verbs" || key == "nonResourceURLs");
                }
                out.non_resource.push(value);
            }
        }
        out
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Which of `wanted` the `owned` rules do not grant, as upstream breaks rules down (`Covers`).
pub fn uncovered(owned: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let mut missing = Vec::new();
    for rule in wanted {
        for part in breakdown(rule) {
            if !owned.iter().any(|o| covers(o, &part)) {
                missing.push(part);
            }
        }
    }
    missing
}

/// One rule for each combination of group, resource, verb and name.
fn breakdown(rule: &Rule) -> Vec<Rule> {
    let mut parts = Vec::new();
    for group in &rule.api_groups {
        for resource in &rule.resources {
            for verb in &rule.verbs {
                let names: Vec<Vec<String>> = match rule.resource_names.as_slice() {
                    [] => vec![Vec::new()],
                    names => names.iter().map(|n| vec![n.clone()]).collect(),
                };
                parts.extend(names.into_iter().map(|resource_names| Rule {
                    verbs: vec![verb.clone()],
                    api_groups: vec![group.clone()],
                    resources: vec![resource.clone()],
                    resource_names,
                    non_resource_urls: Vec::new(),
                }));
            }
        }
    }
    for url in &rule.non_resource_urls {
        parts.extend(rule.verbs.iter().map(|verb| Rule {
            verbs: vec![verb.clone()],
            non_resource_urls: vec![url.clone()],
            ..Rule::default()
        }));
    }
    parts
}

/// Whether `owner` grants `part`, a rule of one combination.
fn covers(owner: &Rule, part: &Rule) -> bool {
    let all =
        |list: &[String], wanted: &[String]| list.iter().any(|v| v == "*") || wanted.iter().all(|w| list.contains(w));
    let resources = || {
        owner.resources.iter().any(|r| r == "*")
            || part.resources.iter().all(|wanted| {
                owner.resources.contains(wanted)
                    || wanted
                        .split_once('/')
                        .is_some_and(|(_, sub)| owner.resources.iter().any(|r| r.strip_prefix("*/") == Some(sub)))
            })
    };
    let names = || {
        owner.resource_names.is_empty()
            || (!part.resource_names.is_empty() && part.resource_names.iter().all(|n| owner.resource_names.contains(n)))
    };
    let paths =
        || part.non_resource_urls.iter().all(|wanted| owner.non_resource_urls.iter().any(|o| covers_path(o, wanted)));
    all(&owner.verbs, &part.verbs) && all(&owner.api_groups, &part.api_groups) && resources() && names() && paths()
}

/// A rule as refusals print it (upstream: `CompactString`).
pub fn compact(rule: &Rule) -> String {
    let list = |name: &str, values: &[String]| {
        let quoted: Vec<String> = values.iter().map(|v| go_quote(v)).collect();
        format!("{name}:[{}]", quoted.join(" "))
    };
    let mut parts = Vec::new();
    for (name, values) in [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("ResourceNames", &rule.resource_names),
        ("Verbs", &rule.verbs),
    ] {
        if !values.is_empty() {
            parts.push(list(name, values));
        }
    }
    format!("{{{}}}", parts.join(", "))
}

/// Joins rules that differ in their verbs only (upstream: `CompactRules`); the order of first appearance is kept.
pub fn compacted(rules: Vec<Rule>) -> Vec<Rule> {
    let mut out: Vec<Rule> = Vec::new();
    for rule in rules {
        let simple = rule.api_groups.len() == 1
            && rule.resources.len() == 1
            && rule.resource_names.len() <= 1
            && rule.non_resource_urls.is_empty();
        let same = simple.then(|| {
            out.iter_mut().find(|o| {
                o.api_groups == rule.api_groups
                    && o.resources == rule.resources
                    && o.resource_names == rule.resource_names
            })
        });
        match same.flatten() {
            Some(known) => {
                for verb in rule.verbs {
                    if !known.verbs.contains(&verb) {
                        known.verbs.push(verb);
                    }
                }
            }
            None => out.push(rule),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(groups: &[&str], resources: &[&str], names: &[&str], verbs: &[&str]) -> Rule {
        let own = |l: &[&str]| l.iter().map(|s| s.to_string()).collect();
        Rule {
            verbs: own(verbs),
            api_groups: own(groups),
            resources: own(resources),
            resource_names: own(names),
            non_resource_urls: Vec::new(),
        }
    }

    #[test]
    fn only_what_no_rule_grants_is_uncovered() {
        let owned = [rule(&[""], &["pods"], &[], &["get"]), rule(&["apps"], &["*/scale"], &["d"], &["*"])];
        let ask = |r: Rule| uncovered(&owned, &[r]);
        assert!(ask(rule(&[""], &["pods"], &["x"], &["get"])).is_empty());
        assert!(ask(rule(&["apps"], &["deployments/scale"], &["d"], &["update"])).is_empty());
        let missing = ask(rule(&["", "apps"], &["pods"], &[], &["get", "delete"]));
        assert_eq!(missing.len(), 3);
        assert_eq!(compact(&missing[0]), r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete"]}"#);
        assert_eq!(ask(rule(&["apps"], &["deployments/scale"], &[], &["update"])).len(), 1);
    }

    #[test]
    fn a_path_pattern_ends_in_a_star() {
        assert!(covers_path("/healthz/*", "/healthz/ping"));
        assert!(!covers_path("/healthz/*", "/healthz"));
        assert!(covers_path("*", "/anything"));
    }
}
