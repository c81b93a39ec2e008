//! `CreateOptions`, `UpdateOptions`, `PatchOptions` and `DeleteOptions`: what a write says beside its object
//! (upstream: `metav1.*Options`, `metav1/validation`).

use coxswain_api::field::{Error, ErrorList, Path, go_quote};
use coxswain_api::{Map, Status, Value, json};

/// `fieldValidation`: what happens to fields that the schema does not know, and to repeated ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// Which options a request carries; the name of the kind is part of the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionsKind {
    Create,
    Update,
    Patch { apply: bool },
}

impl OptionsKind {
    fn kind(self) -> &'static str {
        match self {
            OptionsKind::Create => "CreateOptions",
            OptionsKind::Update => "UpdateOptions",
            OptionsKind::Patch { .. } => "PatchOptions",
        }
    }
}

/// The options of a create, update or patch.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
    pub force: bool,
    /// As admission sees them, without their kind.
    fields: Map<String, Value>,
}

impl WriteOptions {
    /// Reads them from the query and checks them.
    pub fn of_query(query: &Query, kind: OptionsKind) -> Result<Self, Status> {
        let mut errors = ErrorList::new();
        let mut fields = Map::new();
        let dry_run = query.all("dryRun");
        let field_manager = query.first("fieldManager").unwrap_or_default().to_owned();
        let validation = query.first("fieldValidation").unwrap_or_default();
        let force = query.first("force");
        match kind {
            OptionsKind::Patch { apply: true } if field_manager.is_empty() => {
                errors.push(Error::required(&Path::new("fieldManager"), "is required for apply patch"));
            }
            OptionsKind::Patch { apply: false } if force.is_some() => {
                errors.push(Error::forbidden(&Path::new("force"), "may not be specified for non-apply patch"));
            }
            _ => {}
        }
        validate_field_manager(&field_manager, &Path::new("fieldManager"), &mut errors);
        validate_dry_run(&dry_run, &mut errors);
        let field_validation = match validation {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                let known = ["", "Ignore", "Strict", "Warn"];
                errors.push(Error::not_supported(&Path::new("fieldValidation"), other, &known));
                FieldValidation::Warn
            }
        };
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", kind.kind(), "", &errors));
        }
        if !dry_run.is_empty() {
            fields.insert("dryRun".into(), json!(dry_run));
        }
        if !field_manager.is_empty() {
            fields.insert("fieldManager".into(), json!(field_manager));
        }
        if !validation.is_empty() {
            fields.insert("fieldValidation".into(), json!(validation));
        }
        let force = force.is_some_and(query_bool);
        Ok(Self { dry_run: !dry_run.is_empty(), field_manager, field_validation, force, fields })
    }

    /// The object that admission sees: a patch shows as a create or an update.
    pub fn admission_object(&self, kind: &str) -> Value {
        let mut object = Map::new();
        object.insert("kind".into(), kind.into());
        object.insert("apiVersion".into(), "meta.k8s.io/v1".into());
        object.extend(self.fields.clone());
        Value::Object(object)
    }
}

/// The options of a delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub orphan_dependents: Option<bool>,
    pub propagation_policy: Option<String>,
    pub dry_run: bool,
    pub(super) dry_run_values: Vec<String>,
    /// As admission sees them.
    pub object: Value,
}

impl DeleteOptions {
    pub fn of_query(query: &Query) -> Result<Self, Status> {
        let mut fields = Map::new();
        if let Some(text) = query.first("gracePeriodSeconds") {
            let seconds: i64 = text.parse().map_err(|_| {
                Status::bad_request(format!("strconv.ParseInt: parsing {}: invalid syntax", go_quote(text)))
            })?;
            fields.insert("gracePeriodSeconds".into(), json!(seconds));
        }
        if let Some(text) = query.first("orphanDependents") {
            fields.insert("orphanDependents".into(), json!(query_bool(text)));
        }
        if let Some(text) = query.first("propagationPolicy") {
            fields.insert("propagationPolicy".into(), json!(text));
        }
        let dry_run = query.all("dryRun");
        if !dry_run.is_empty() {
            fields.insert("dryRun".into(), json!(dry_run));
        }
        Self::of_tree(&Value::Object(fields))
    }

    /// From a decoded `DeleteOptions` object.
    pub fn of_tree(tree: &Value) -> Result<Self, Status> {
        let text = |v: Option<&Value>| v.and_then(Value::as_str).map(str::to_owned);
        let preconditions = tree.get("preconditions");
        let dry_run_values: Vec<String> = tree
            .get("dryRun")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect();
        let mut object = tree.as_object().cloned().unwrap_or_default();
        object.insert("kind".into(), "DeleteOptions".into());
        object.insert("apiVersion".into(), "meta.k8s.io/v1".into());
        let options = Self {
            grace_period_seconds: tree.get("gracePeriodSeconds").and_then(Value::as_i64),
            uid: text(preconditions.and_then(|p| p.get("uid"))),
            resource_version: text(preconditions.and_then(|p| p.get("resourceVersion"))),
            orphan_dependents: tree.get("orphanDependents").and_then(Value::as_bool),
            propagation_policy: text(tree.get("propagationPolicy")),
            dry_run: !dry_run_values.is_empty(),
            dry_run_values,
            object: Value::Object(object),
        };
        options.validate()?;
        Ok(options)
    }

    fn validate(&self) -> Result<(), Status> {
        let mut errors = ErrorList::new();
        let path = Path::new("propagationPolicy");
        if let Some(policy) = &self.propagation_policy {
            if self.orphan_dependents.is_some() {
                let why = "orphanDependents and deletionPropagation cannot be both set";
                errors.push(Error::invalid(&path, policy, why));
            }
            if !matches!(policy.as_str(), "Foreground" | "Background" | "Orphan") {
                errors.push(Error::not_supported(&path, policy, &["Foreground", "Background", "Orphan", "nil"]));
            }
        }
        validate_dry_run(&self.dry_run_values, &mut errors);
        if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errors)) }
    }
}

fn validate_dry_run<S: AsRef<str>>(values: &[S], errors: &mut ErrorList) {
    if values.iter().any(|v| v.as_ref() != "All") {
        let list: Vec<&str> = values.iter().map(AsRef::as_ref).collect();
        errors.push(Error::not_supported(&Path::new("dryRun"), &json!(list), &["All"]));
    }
}

/// At most 128 bytes, all printable.
pub fn validate_field_manager(manager: &str, path: &Path, errors: &mut ErrorList) {
    if manager.len() > 128 {
        errors.push(Error::too_long(path, 128));
    }
    for (i, c) in manager.char_indices() {
        if !printable(c) {
            let why = format!("invalid character U+{:04X} (at position {i})", c as u32);
            errors.push(Error::invalid(path, manager, why));
        }
    }
}

fn printable(c: char) -> bool {
    c == ' ' || !(c.is_control() || c.is_whitespace())
}

/// The manager of a write that names none: the user agent up to its first slash.
pub fn manager_of_user_agent(agent: &str) -> String {
    let mut out = String::new();
    for c in agent.split('/').next().unwrap_or_default().chars().filter(|c| printable(*c)) {
        if out.len() + c.len_utf8() > 128 {
            break;
        }
        out.push(c);
    }
    out
}

/// A query parameter as a truth value: everything but `false` and `0` is true.
fn query_bool(text: &str) -> bool {
    !(text.eq_ignore_ascii_case("false") || text == "0")
}

/// The query of a request, decoded.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|p| !p.is_empty() && !p.contains(';'));
        let decoded = pairs.filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((percent_decoded(name)?, percent_decoded(value)?))
        });
        Self(decoded.collect())
    }

    pub fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    }
}

/// As Go's `url.QueryUnescape`: a malformed escape makes the pair disappear.
fn percent_decoded(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'+' => out.push(b' '),
            b'%' => {
                let digit = |b: Option<&u8>| b.and_then(|b| (*b as char).to_digit(16));
                let (high, low) = (digit(bytes.get(at + 1))?, digit(bytes.get(at + 2))?);
                out.push((high * 16 + low) as u8);
                at += 2;
            }
            other => out.push(other),
        }
        at += 1;
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(query: &str, kind: OptionsKind) -> String {
        WriteOptions::of_query(&Query::parse(Some(query)), kind).unwrap_err().message
    }

    #[test]
    fn options_are_refused_in_upstreams_words() {
        assert_eq!(
            refusal("dryRun=Some", OptionsKind::Create),
            r#"CreateOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: ["Some"]: supported values: "All""#
        );
        assert_eq!(
            refusal("force=true", OptionsKind::Patch { apply: false }),
            r#"PatchOptions.meta.k8s.io "" is invalid: force: Forbidden: may not be specified for non-apply patch"#
        );
        assert_eq!(
            refusal("", OptionsKind::Patch { apply: true }),
            r#"PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch"#
        );
        let grace = DeleteOptions::of_query(&Query::parse(Some("gracePeriodSeconds=soon"))).unwrap_err();
        assert_eq!(grace.message, r#"strconv.ParseInt: parsing "soon": invalid syntax"#);
    }

    #[test]
    fn a_manager_is_the_user_agent_up_to_the_slash() {
        assert_eq!(manager_of_user_agent("kubectl/v1.36.2 (linux/amd64)"), "kubectl");
        assert_eq!(manager_of_user_agent(""), "");
        assert_eq!(manager_of_user_agent(&"x".repeat(200)).len(), 128);
    }
}
