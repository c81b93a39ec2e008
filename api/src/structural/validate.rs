//! Validation of values (upstream: `kube-openapi/pkg/validation/validate` and its use in `apiserver/validation`).

use super::{Checks, Structural, formats};
use crate::codec::json::go_float;
use crate::field::{Error, ErrorKind, ErrorList, go_quote, go_value};
use serde_json::{Number, Value};

/// What schema says of a value that it holds.
struct Found<'a> {
    errors: &'a mut ErrorList,
    path: String,
}

impl Structural {
    /// Everything that is wrong with a whole object, its types included. Lists that are sets or maps, embedded objects and CEL
    /// are checked elsewhere.
    pub fn validate(&self, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        self.value(object, "", &mut errors);
        errors
    }

    /// What is wrong with a value that stands on its own, such as a default.
    pub fn is_valid(&self, value: &Value) -> bool {
        self.validate(value).is_empty()
    }

    fn value(&self, value: &Value, path: &str, errors: &mut ErrorList) {
        let mut found = Found { errors, path: path.to_owned() };
        self.types(value, &mut found);
        if value.is_null() {
            if !self.nullable {
                self.checks.allowed(value, &mut found);
            }
            return;
        }
        self.checks.alternatives(value, &mut found);
        match value {
            Value::String(text) => self.checks.text(text, &mut found),
            Value::Number(number) => self.checks.number(number, &self.ty, self.int_or_string, &mut found),
            Value::Array(items) => {
                self.checks.counts(items.len(), self.checks.min_items, self.checks.max_items, "items", &mut found);
                if let Some(schema) = &self.items {
                    for (i, item) in items.iter().enumerate() {
                        schema.value(item, &format!("{path}[{i}]"), found.errors);
                    }
                }
            }
            _ => {}
        }
        self.checks.allowed(value, &mut found);
        if let Value::Object(map) = value {
            let checks = &self.checks;
            checks.counts(map.len(), checks.min_properties, checks.max_properties, "properties", &mut found);
            let child = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            for name in checks.required.iter().filter(|name| !map.contains_key(&***name)) {
                found.add_at(ErrorKind::Required, child(name), None, String::new());
            }
            for (name, value) in map {
                if let Some(schema) = self.properties.get(name.as_str()).or(self.additional.as_deref()) {
                    schema.value(value, &child(name), found.errors);
                }
            }
        }
    }

    fn types(&self, value: &Value, found: &mut Found) {
        let wanted = match (&*self.ty, self.int_or_string) {
            (_, true) => "integer,string",
            ("", _) => return,
            (ty, _) => ty,
        };
        let is = match value {
            Value::Null if self.nullable => return,
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
            Value::Number(n) if is_integer(n) => "integer",
            Value::Number(_) => "number",
        };
        if wanted.split(',').any(|w| w == is || (w == "number" && is == "integer")) {
            return;
        }
        let detail = format!("{} in body must be of type {wanted}: {}", found.path, go_quote(is));
        found.add(ErrorKind::TypeInvalid, go_quote(is), detail);
    }
}

fn is_integer(n: &Number) -> bool {
    n.is_i64() || n.is_u64() || n.as_f64().is_some_and(|f| f.fract() == 0.0)
}

impl Found<'_> {
    fn add(&mut self, kind: ErrorKind, bad_value: String, detail: String) {
        let path = if self.path.is_empty() { "<nil>".to_owned() } else { self.path.clone() };
        self.add_at(kind, path, Some(bad_value), detail);
    }

    fn add_at(&mut self, kind: ErrorKind, field: String, bad_value: Option<String>, detail: String) {
        self.errors.push(Error { kind, field, bad_value, detail });
    }

    /// A complaint that upstream ties to no field.
    fn add_loose(&mut self, detail: String) {
        self.add_at(ErrorKind::Invalid, "<nil>".into(), Some("\"\"".into()), detail);
    }

    fn should(&mut self, bad_value: String, what: &str) {
        let detail = format!("{} in body should {what}", self.path);
        self.add(ErrorKind::Invalid, bad_value, detail);
    }
}

impl Checks {
    fn text(&self, text: &str, found: &mut Found) {
        let length = text.chars().count() as i64;
        if let Some(max) = self.max_length.filter(|max| length > *max) {
            let detail = format!("may not be more than {max} {}", if max == 1 { "byte" } else { "bytes" });
            let path = found.path.clone();
            found.add_at(ErrorKind::TooLong, path, None, detail);
        }
        if let Some(min) = self.min_length.filter(|min| length < *min) {
            found.should(go_quote(text), &format!("be at least {min} chars long"));
        }
        if let Some(pattern) = &self.pattern
            && !pattern.fits(text)
        {
            found.should(go_quote(text), &format!("match '{}'", pattern.source));
        }
        if !self.format.is_empty() && !formats::fits(&self.format, text) {
            let quoted = go_quote(text);
            let detail = format!("{} in body must be of type {}: {quoted}", found.path, self.format);
            found.add(ErrorKind::TypeInvalid, quoted, detail);
        }
    }

    fn number(&self, number: &Number, ty: &str, int_or_string: bool, found: &mut Found) {
        let Some(n) = number.as_f64() else { return };
        let shown = go_value(&Value::Number(number.clone()));
        if ty == "integer" && !int_or_string {
            let fits = match &*self.format {
                "int32" => n >= f64::from(i32::MIN) && n <= f64::from(i32::MAX),
                "uint32" => n >= 0.0 && n <= f64::from(u32::MAX),
                "uint64" => n >= 0.0,
                _ => true,
            };
            if !is_integer(number) || !fits {
                let format = match &*self.format {
                    "" => "(default format)".to_owned(),
                    format => format!("with format {format}"),
                };
                found.add_loose(format!("Checked value must be of type integer {format} in {}", found.path));
            }
        } else if ty == "number" && &*self.format == "float" && n.abs() > f64::from(f32::MAX) {
            found.add_loose(format!("Checked value must be of type number with format float in {}", found.path));
        }
        if let Some(factor) = self.multiple_of.filter(|f| *f > 0.0 && (n / f).fract() != 0.0) {
            found.should(shown.clone(), &format!("be a multiple of {}", go_number(factor)));
        }
        if let Some(max) = self.maximum
            && (n > max || (self.exclusive_maximum && n == max))
        {
            let or_equal = if self.exclusive_maximum { "" } else { " or equal to" };
            found.should(shown.clone(), &format!("be less than{or_equal} {}", go_number(max)));
        }
        if let Some(min) = self.minimum
            && (n < min || (self.exclusive_minimum && n == min))
        {
            let or_equal = if self.exclusive_minimum { "" } else { " or equal to" };
            found.should(shown, &format!("be greater than{or_equal} {}", go_number(min)));
        }
    }

    fn counts(&self, count: usize, min: Option<i64>, max: Option<i64>, what: &str, found: &mut Found) {
        let count = count as i64;
        if let Some(min) = min.filter(|min| count < *min) {
            found.should(count.to_string(), &format!("have at least {min} {what}"));
        }
        if let Some(max) = max.filter(|max| count > *max) {
            let detail = format!("must have at most {max} {}", if max == 1 { "item" } else { "items" });
            found.add(ErrorKind::TooMany, count.to_string(), detail);
        }
    }

    fn allowed(&self, value: &Value, found: &mut Found) {
        let same = |a: &Value| match (a, value) {
            (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
            (a, b) => a == b,
        };
        if self.allowed.is_empty() || self.allowed.iter().any(same) {
            return;
        }
        let text = |v: &Value| match v {
            Value::String(s) => go_quote(s),
            other => go_quote(&other.to_string()),
        };
        let supported: Vec<String> = self.allowed.iter().map(text).collect();
        found.add(ErrorKind::NotSupported, go_value(value), format!("supported values: {}", supported.join(", ")));
    }

    /// `allOf`, `anyOf`, `oneOf` and `not`.
    fn alternatives(&self, value: &Value, found: &mut Found) {
        let name = go_quote(&found.path);
        let try_one = |schema: &Structural, path: &str| {
            let mut errors = ErrorList::new();
            schema.value(value, path, &mut errors);
            errors
        };
        if !self.any_of.is_empty() {
            let tried: Vec<ErrorList> = self.any_of.iter().map(|s| try_one(s, &found.path)).collect();
            if !tried.iter().any(Vec::is_empty) {
                found.add_loose(format!("{name} must validate at least one schema (anyOf)"));
                found.errors.extend(tried.into_iter().next().unwrap_or_default());
            }
        }
        if !self.one_of.is_empty() {
            let tried: Vec<ErrorList> = self.one_of.iter().map(|s| try_one(s, &found.path)).collect();
            let valid = tried.iter().filter(|errors| errors.is_empty()).count();
            if valid != 1 {
                let how_many =
                    if valid == 0 { "Found none valid".into() } else { format!("Found {valid} valid alternatives") };
                found.add_loose(format!("{name} must validate one and only one schema (oneOf). {how_many}"));
                if valid == 0 {
                    found.errors.extend(tried.into_iter().next().unwrap_or_default());
                }
            }
        }
        if !self.all_of.is_empty() {
            let tried: Vec<ErrorList> = self.all_of.iter().map(|s| try_one(s, &found.path)).collect();
            let valid = tried.iter().filter(|errors| errors.is_empty()).count();
            if valid != tried.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                let complaint = format!("{name} must validate all the schemas (allOf){none}");
                found.errors.extend(tried.into_iter().flatten());
                found.add_loose(complaint);
            }
        }
        if let Some(schema) = &self.not
            && try_one(schema, &found.path).is_empty()
        {
            found.add_loose(format!("{name} must not validate the schema (not)"));
        }
    }
}

/// A number as Go's `%v` prints it.
fn go_number(n: f64) -> String {
    if n != 0.0 && n.abs() < 1e-4 {
        let text = format!("{n:e}");
        let (digits, exponent) = text.split_once("e-").unwrap_or((&text, "0"));
        return format!("{digits}e-{exponent:0>2}");
    }
    go_float(n)
}
