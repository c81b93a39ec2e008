//! Field paths, field errors and views of a tree that know their path (upstream: `apimachinery/pkg/util/validation/field`).
//!
//! A [`View`] couples a value with the path that leads to it, so that validation names a field once and never gets the
//! path of an error wrong. An absent value is an empty view: reading it yields zero values, as Go's structs do.

use serde_json::Value;
use std::fmt;
use std::rc::Rc;

/// The path of a field, such as `spec.containers[0].ports[1].name` or `metadata.labels[app]`.
///
/// Cloning and extending are cheap; the text is made only when an error needs it.
#[derive(Clone, Default)]
pub struct Path(Option<Rc<Node>>);

struct Node {
    parent: Path,
    step: Step,
}

enum Step {
    Child(Box<str>),
    Static(&'static str),
    Index(usize),
    Key(Box<str>),
}

impl Path {
    /// The path of the object itself, which prints as nothing.
    pub fn root() -> Self {
        Path(None)
    }

    /// The path of a field in the object, as upstream's `field.NewPath`.
    pub fn new(name: &'static str) -> Self {
        Path(None).child(name)
    }

    pub fn child(&self, name: &'static str) -> Self {
        self.step(Step::Static(name))
    }

    /// A child whose name is known only at run time.
    pub fn child_named(&self, name: &str) -> Self {
        self.step(Step::Child(name.into()))
    }

    pub fn index(&self, i: usize) -> Self {
        self.step(Step::Index(i))
    }

    pub fn key(&self, key: &str) -> Self {
        self.step(Step::Key(key.into()))
    }

    fn step(&self, step: Step) -> Self {
        Path(Some(Rc::new(Node { parent: self.clone(), step })))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut steps = Vec::new();
        let mut at = self;
        while let Some(node) = &at.0 {
            steps.push(&node.step);
            at = &node.parent;
        }
        for (i, step) in steps.iter().rev().enumerate() {
            let dot = if i == 0 { "" } else { "." };
            match step {
                // Upstream takes a name that is empty for an empty index.
                Step::Static("") => write!(f, "[]")?,
                Step::Child(name) => write!(f, "{dot}{name}")?,
                Step::Static(name) => write!(f, "{dot}{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => write!(f, "[{key}]")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What is wrong with a field (upstream: `field.ErrorType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

impl ErrorKind {
    /// The `reason` of a status cause, such as `FieldValueInvalid`.
    pub fn reason(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "FieldValueNotFound",
            ErrorKind::Required => "FieldValueRequired",
            ErrorKind::Duplicate => "FieldValueDuplicate",
            ErrorKind::Invalid => "FieldValueInvalid",
            ErrorKind::NotSupported => "FieldValueNotSupported",
            ErrorKind::Forbidden => "FieldValueForbidden",
            ErrorKind::TooLong => "FieldValueTooLong",
            ErrorKind::TooMany => "FieldValueTooMany",
            ErrorKind::Internal => "InternalError",
            ErrorKind::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn text(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "Not found",
            ErrorKind::Required => "Required value",
            ErrorKind::Duplicate => "Duplicate value",
            ErrorKind::Invalid | ErrorKind::TypeInvalid => "Invalid value",
            ErrorKind::NotSupported => "Unsupported value",
            ErrorKind::Forbidden => "Forbidden",
            ErrorKind::TooLong => "Too long",
            ErrorKind::TooMany => "Too many",
            ErrorKind::Internal => "Internal error",
        }
    }
}

/// One thing wrong with one field. `bad_value` is text as upstream prints it (see [`go_value`]).
#[derive(Clone, Debug)]
pub struct Error {
    pub kind: ErrorKind,
    pub field: String,
    pub bad_value: Option<String>,
    pub detail: String,
}

/// Every error of a validation, in the order found.
pub type ErrorList = Vec<Error>;

impl Error {
    pub fn required(path: &Path, detail: impl Into<String>) -> Self {
        Self::plain(ErrorKind::Required, path, detail)
    }

    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Self::plain(ErrorKind::Forbidden, path, detail)
    }

    pub fn internal(path: &Path, detail: impl Into<String>) -> Self {
        Self::plain(ErrorKind::Internal, path, detail)
    }

    pub fn invalid(path: &Path, value: impl BadValue, detail: impl Into<String>) -> Self {
        Self { bad_value: Some(value.text()), ..Self::plain(ErrorKind::Invalid, path, detail) }
    }

    pub fn type_invalid(path: &Path, value: impl BadValue, detail: impl Into<String>) -> Self {
        Self { bad_value: Some(value.text()), ..Self::plain(ErrorKind::TypeInvalid, path, detail) }
    }

    pub fn duplicate(path: &Path, value: impl BadValue) -> Self {
        Self { bad_value: Some(value.text()), ..Self::plain(ErrorKind::Duplicate, path, "") }
    }

    pub fn not_found(path: &Path, value: impl BadValue) -> Self {
        Self { bad_value: Some(value.text()), ..Self::plain(ErrorKind::NotFound, path, "") }
    }

    /// `supported` is listed in the order given: callers sort it where upstream does.
    pub fn not_supported(path: &Path, value: impl BadValue, supported: &[&str]) -> Self {
        let detail = if supported.is_empty() {
            String::new()
        } else {
            let quoted: Vec<String> = supported.iter().map(|s| go_quote(s)).collect();
            format!("supported values: {}", quoted.join(", "))
        };
        Self { bad_value: Some(value.text()), ..Self::plain(ErrorKind::NotSupported, path, detail) }
    }

    /// The value itself is left out of the message: it is too long by definition.
    pub fn too_long(path: &Path, max_bytes: i64) -> Self {
        let detail = if max_bytes >= 0 {
            format!("may not be more than {max_bytes} {}", if max_bytes == 1 { "byte" } else { "bytes" })
        } else {
            "value is too long".into()
        };
        Self::plain(ErrorKind::TooLong, path, detail)
    }

    pub fn too_many(path: &Path, actual: usize, max: i64) -> Self {
        let detail = if max >= 0 {
            format!("must have at most {max} {}", if max == 1 { "item" } else { "items" })
        } else {
            "has too many items".into()
        };
        Self { bad_value: Some(actual.to_string()), ..Self::plain(ErrorKind::TooMany, path, detail) }
    }

    fn plain(kind: ErrorKind, path: &Path, detail: impl Into<String>) -> Self {
        // Upstream prints the root path as `<nil>`.
        let field = if path.0.is_none() { "<nil>".to_owned() } else { path.to_string() };
        Self { kind, field, bad_value: None, detail: detail.into() }
    }

    /// The message without the field (upstream: `Error.ErrorBody`).
    pub fn body(&self) -> String {
        let mut out = self.kind.text().to_owned();
        if let Some(value) = &self.bad_value {
            out.push_str(": ");
            out.push_str(value);
        }
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// A value that an error message can show.
pub trait BadValue {
    /// The text as Go's `%#v`-like formatting in `Error.ErrorBody` gives it.
    fn text(&self) -> String;
}

impl BadValue for &str {
    fn text(&self) -> String {
        go_quote(self)
    }
}
impl BadValue for &String {
    fn text(&self) -> String {
        go_quote(self)
    }
}
impl BadValue for String {
    fn text(&self) -> String {
        go_quote(self)
    }
}
impl BadValue for i64 {
    fn text(&self) -> String {
        self.to_string()
    }
}
impl BadValue for bool {
    fn text(&self) -> String {
        self.to_string()
    }
}
impl BadValue for &Value {
    fn text(&self) -> String {
        go_value(self)
    }
}
impl BadValue for View<'_> {
    fn text(&self) -> String {
        self.value.map_or_else(|| "null".into(), go_value)
    }
}
impl BadValue for &View<'_> {
    fn text(&self) -> String {
        (*self).clone().text()
    }
}

/// A value as upstream prints it in a field error: scalars as in Go, composite values as JSON.
pub fn go_value(value: &Value) -> String {
    match value {
        Value::String(s) => go_quote(s),
        Value::Number(number) => match number.as_f64() {
            Some(float) if !number.is_i64() && !number.is_u64() => go_float_v(float),
            _ => number.to_string(),
        },
        Value::Null | Value::Bool(_) => value.to_string(),
        Value::Array(_) | Value::Object(_) => go_json(value),
    }
}

/// JSON as Go writes it: in the order of the names, floats in its form, and without what HTML would read; label selectors in the
/// order of their type's fields.
pub fn go_json(value: &Value) -> String {
    let list = |parts: Vec<String>| parts.join(",");
    if let (Some(labels), Some(expressions)) = (value.get("matchLabels"), value.get("matchExpressions"))
        && value.as_object().is_some_and(|map| map.len() == 2)
    {
        return format!(r#"{{"matchLabels":{},"matchExpressions":{}}}"#, go_json(labels), go_json(expressions));
    }
    match value {
        Value::Array(items) => format!("[{}]", list(items.iter().map(go_json).collect())),
        Value::Object(map) => {
            let mut members: Vec<(&String, &Value)> = map.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            format!(
                "{{{}}}",
                list(members.into_iter().map(|(k, v)| format!("{}:{}", go_text(k), go_json(v))).collect())
            )
        }
        Value::String(text) => go_text(text),
        Value::Number(number) => match number.as_f64() {
            Some(float) if !number.is_i64() && !number.is_u64() => crate::codec::json::go_float(float),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

fn go_text(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    if !quoted.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return quoted;
    }
    let quoted = quoted.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    quoted.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

/// A float as Go's `%v` prints it: the shortest digits, with an exponent below 1e-4 and from 1e6 on, which has two digits at
/// least.
pub fn go_float_v(float: f64) -> String {
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        _ if float == 0.0 => if float.is_sign_negative() { "-0" } else { "0" }.into(),
        -4..6 => float.to_string(),
        exponent => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

/// A string as Go's `%q` quotes it.
pub fn go_quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\u{b}' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A value of a tree, or its absence, with the path that leads to it.
#[derive(Clone)]
pub struct View<'a> {
    value: Option<&'a Value>,
    path: Path,
}

impl<'a> View<'a> {
    /// The whole object.
    pub fn root(value: &'a Value) -> Self {
        Self { value: Some(value), path: Path::root() }
    }

    pub fn new(value: Option<&'a Value>, path: Path) -> Self {
        // A JSON null is the absence of a value, as a nil pointer is.
        Self { value: value.filter(|v| !v.is_null()), path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn value(&self) -> Option<&'a Value> {
        self.value
    }

    /// Whether the field is set at all (a nil pointer is not; an empty string in the tree is).
    pub fn exists(&self) -> bool {
        self.value.is_some()
    }

    pub fn child(&self, name: &'static str) -> View<'a> {
        View::new(self.value.and_then(|v| v.get(name)), self.path.child(name))
    }

    pub fn child_named(&self, name: &str) -> View<'a> {
        View::new(self.value.and_then(|v| v.get(name)), self.path.child_named(name))
    }

    /// The elements of a list; none if the field is absent or not a list.
    pub fn items(&self) -> impl Iterator<Item = View<'a>> + use<'a> {
        let path = self.path.clone();
        let items = self.value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        items.iter().enumerate().map(move |(i, v)| View { value: Some(v), path: path.index(i) })
    }

    /// The entries of a map in key order, each with the path `map[key]`.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, View<'a>)> + use<'a> {
        let path = self.path.clone();
        let map = self.value.and_then(Value::as_object);
        map.into_iter().flatten().map(move |(k, v)| (k.as_str(), View { value: Some(v), path: path.key(k) }))
    }

    /// How many elements or entries there are.
    pub fn len(&self) -> usize {
        match self.value {
            Some(Value::Array(a)) => a.len(),
            Some(Value::Object(o)) => o.len(),
            Some(Value::String(s)) => s.len(),
            _ => 0,
        }
    }

    /// Absent, or an empty string, list or map: what Go's `len(x) == 0` says.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The text, or `""`.
    pub fn str(&self) -> &'a str {
        self.value.and_then(Value::as_str).unwrap_or_default()
    }

    pub fn opt_str(&self) -> Option<&'a str> {
        self.value.and_then(Value::as_str)
    }

    /// The number, or 0.
    pub fn i64(&self) -> i64 {
        self.opt_i64().unwrap_or_default()
    }

    pub fn opt_i64(&self) -> Option<i64> {
        self.value.and_then(Value::as_i64)
    }

    /// The truth value, or `false`.
    pub fn bool(&self) -> bool {
        self.opt_bool().unwrap_or_default()
    }

    pub fn opt_bool(&self) -> Option<bool> {
        self.value.and_then(Value::as_bool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_view_names_the_path_it_came_by() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "B"}]}, "metadata": {"labels": {"x y": "1"}}});
        let root = View::root(&pod);
        let second = root.child("spec").child("containers").items().nth(1).unwrap();
        let name = second.child("name");
        let err = Error::invalid(name.path(), &name, "must be lower case");
        assert_eq!(err.to_string(), r#"spec.containers[1].name: Invalid value: "B": must be lower case"#);
        let labels = root.child("metadata").child("labels");
        let (_, label) = labels.entries().next().unwrap();
        assert_eq!(label.path().to_string(), "metadata.labels[x y]");
        assert!(!root.child("status").child("phase").exists());
    }

    #[test]
    fn messages_read_as_upstream_prints_them() {
        let p = Path::new("spec").child("type");
        assert_eq!(
            Error::not_supported(&p, "X", &["ClusterIP", "NodePort"]).to_string(),
            r#"spec.type: Unsupported value: "X": supported values: "ClusterIP", "NodePort""#
        );
        assert_eq!(Error::required(&p, "").to_string(), "spec.type: Required value");
        assert_eq!(Error::too_long(&p, 63).to_string(), "spec.type: Too long: may not be more than 63 bytes");
        assert_eq!(Error::too_many(&p, 5, 1).to_string(), "spec.type: Too many: 5: must have at most 1 item");
    }
}
