//! Validation of values (upstream: `kube-openapi/pkg/validation/validate` and its use in `apiserver/validation`).
//!
//! Upstream counts the checks that a value passed, and of alternatives that all failed it tells of the one that came
//! furthest; so do we. What was wrong before and has not changed may stay wrong (upstream: ratcheting).

mod numbers;

use super::{Checks, Structural, formats};
use crate::field::{Error, ErrorKind, ErrorList, go_quote, go_value};
use serde_json::Value;

/// What was found at a value and below it.
#[derive(Default)]
struct Verdict {
    errors: ErrorList,
    /// How many checks it passed, as upstream counts.
    passed: usize,
}

impl Verdict {
    /// Takes what another found. What is told already is not told again.
    fn merge(&mut self, other: Verdict) {
        self.passed += other.passed;
        other.errors.into_iter().for_each(|error| self.add(error));
    }

    fn add(&mut self, error: Error) {
        let same =
            |known: &Error| known.detail == error.detail && (!known.detail.is_empty() || known.field == error.field);
        if !self.errors.iter().any(same) {
            self.errors.push(error);
        }
    }

    /// What came of one check.
    fn check(&mut self, found: Option<Error>) {
        match found {
            Some(error) => self.add(error),
            None => self.passed += 1,
        }
    }
}

/// A complaint about the field at a path, which is empty at the root.
fn at(kind: ErrorKind, path: &str, bad_value: Option<String>, detail: String) -> Error {
    let field = if path.is_empty() { "<nil>".to_owned() } else { path.to_owned() };
    Error { kind, field, bad_value, detail }
}

/// A complaint that upstream ties to no field.
fn loose(detail: String) -> Error {
    at(ErrorKind::Invalid, "", Some("\"\"".into()), detail)
}

fn should(path: &str, bad_value: String, what: &str) -> Error {
    at(ErrorKind::Invalid, path, Some(bad_value), format!("{path} in body should {what}"))
}

fn of_type(path: &str, wanted: &str, is: &str) -> Error {
    let is = go_quote(is);
    let detail = format!("{path} in body must be of type {wanted}: {is}");
    at(ErrorKind::TypeInvalid, path, Some(is), detail)
}

fn child(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

impl Structural {
    /// Everything that is wrong with a whole object, its types included. Lists that are sets or maps, embedded objects and CEL
    /// are checked elsewhere.
    pub fn validate(&self, object: &Value) -> ErrorList {
        self.value(object, None, "").errors
    }

    /// The same of an object that replaces another.
    pub fn validate_update(&self, object: &Value, old: &Value) -> ErrorList {
        self.value(object, Some(old), "").errors
    }

    /// The same of a value that is somewhere. Messages speak of it as if it stood on its own.
    pub fn validate_part(&self, value: &Value, old: Option<&Value>, at: &str) -> ErrorList {
        let mut errors = self.value(value, old, "").errors;
        for error in &mut errors {
            error.field = match error.field.as_str() {
                "<nil>" => at.to_owned(),
                field if field.starts_with('[') => format!("{at}{field}"),
                field => format!("{at}.{field}"),
            };
        }
        errors
    }

    fn value(&self, value: &Value, old: Option<&Value>, path: &str) -> Verdict {
        let found = self.value_as_new(value, old, path);
        if !found.errors.is_empty() && old == Some(value) {
            return Verdict { errors: ErrorList::new(), passed: found.passed };
        }
        found
    }

    fn value_as_new(&self, value: &Value, old: Option<&Value>, path: &str) -> Verdict {
        let mut found = Verdict::default();
        let checks = &self.checks;
        if value.is_null() {
            found.check(self.wrong_type(value, path));
            found.errors.extend(checks.not_allowed(value, path));
            return found;
        }
        if !self.ty.is_empty() || self.int_or_string || !checks.format.is_empty() {
            found.check(self.wrong_type(value, path));
            found.passed += 1;
        }
        found.merge(self.alternatives(value, old, path));
        found.passed += 1;
        match value {
            Value::String(text) => {
                found.errors.extend(checks.text(text, path));
                found.passed += 1;
                if formats::is_known(&checks.format) {
                    found.errors.extend(checks.bad_format(text, path));
                    found.passed += 1;
                }
            }
            Value::Number(number) => {
                let ty = if self.int_or_string { "" } else { &*self.ty };
                numbers::check(checks, number, ty, path).into_iter().for_each(|error| found.add(error));
                found.passed += 2;
            }
            Value::Array(items) => {
                self.items(items, old, path, &mut found);
                found.passed += 2;
            }
            _ => {}
        }
        if !checks.allowed.is_empty() {
            found.errors.extend(checks.not_allowed(value, path));
        }
        found.passed += 1;
        if let Value::Object(map) = value {
            self.members(map, old, path, &mut found);
            found.passed += 1;
        }
        found.passed += 1;
        found
    }

    fn items(&self, items: &[Value], old: Option<&Value>, path: &str, found: &mut Verdict) {
        if let Some(schema) = &self.items {
            for (i, item) in items.iter().enumerate() {
                let old = old.and_then(|old| self.former_item(item, old));
                found.merge(schema.value(item, old, &format!("{path}[{i}]")));
            }
        }
        let (count, checks) = (items.len() as i64, &self.checks);
        if let Some(min) = checks.min_items.filter(|min| count < *min) {
            found.add(should(path, count.to_string(), &format!("have at least {min} items")));
        }
        if let Some(max) = checks.max_items.filter(|max| count > *max) {
            found.add(too_many(path, count, max));
        }
    }

    /// The element that an element was, told by its keys.
    pub fn former_item<'o>(&self, item: &Value, old: &'o Value) -> Option<&'o Value> {
        let old = old.as_array().filter(|_| &*self.list_type == "map")?;
        old.iter().find(|old| self.list_map_keys.iter().all(|key| old.get(&**key) == item.get(&**key)))
    }

    fn members(&self, map: &serde_json::Map<String, Value>, old: Option<&Value>, path: &str, found: &mut Verdict) {
        let (count, checks) = (map.len() as i64, &self.checks);
        if let Some(min) = checks.min_properties.filter(|min| count < *min) {
            found.add(should(path, count.to_string(), &format!("have at least {min} properties")));
        }
        if let Some(max) = checks.max_properties.filter(|max| count > *max) {
            found.add(too_many(path, count, max));
        }
        // The members of a map that is replaced as a whole have no former selves.
        let old = old.filter(|_| &*self.map_type != "atomic");
        for (name, value) in map {
            if self.properties.contains_key(name.as_str()) {
                continue;
            }
            if self.no_others {
                let detail = format!("{path}.{name} in body is a forbidden property");
                found.add(at(ErrorKind::Invalid, path, Some(go_quote(name)), detail));
            } else if let Some(schema) = &self.additional {
                let old = old.and_then(|old| old.get(name));
                found.merge(schema.value(value, old, &child(path, name)));
            }
        }
        for (name, schema) in &self.properties {
            if let Some(value) = map.get(&**name) {
                let old = old.and_then(|old| old.get(&**name));
                found.merge(schema.value(value, old, &child(path, name)));
            }
        }
        for name in checks.required.iter().filter(|name| !map.contains_key(&***name)) {
            found.add(at(ErrorKind::Required, &child(path, name), None, String::new()));
        }
    }

    fn wrong_type(&self, value: &Value, path: &str) -> Option<Error> {
        let wanted: &[&str] = match (&*self.ty, self.int_or_string) {
            (_, true) => &["integer", "string"],
            ("", _) => &[],
            (ty, _) => &[ty],
        };
        let format = &*self.checks.format;
        // What Go's type of a value is called as a format.
        let (is, own_format) = match value {
            Value::Null if self.nullable || wanted.is_empty() => return None,
            Value::Null => return Some(of_type(path, &wanted.join(","), "null")),
            Value::Bool(_) => ("boolean", ""),
            Value::String(_) => ("string", ""),
            Value::Array(_) => ("array", ""),
            Value::Object(_) => ("object", ""),
            Value::Number(n) if n.is_i64() => ("integer", "int64"),
            Value::Number(_) => ("number", "float64"),
        };
        let wants = |ty: &str| wanted.contains(&ty);
        let is_whole = is == "number" && wants("integer") && value.as_f64().is_some_and(numbers::is_whole);
        let fits = wants(is) || is_whole || is == "integer" && wants("number");
        let is_text = matches!(is, "string" | "array");
        if !is_text && !format.is_empty() && !fits && own_format != format {
            return Some(of_type(path, format, own_format));
        }
        if !wants("number") && !wants("integer") && !format.is_empty() && is_text {
            return None;
        }
        (!fits).then(|| of_type(path, &wanted.join(","), is))
    }

    /// `allOf`, `anyOf`, `oneOf` and `not`.
    fn alternatives(&self, value: &Value, old: Option<&Value>, path: &str) -> Verdict {
        let mut found = Verdict { errors: ErrorList::new(), passed: 1 };
        let name = go_quote(path);
        let checks = &self.checks;
        if !checks.any_of.is_empty() {
            let mut best: Option<Verdict> = None;
            for schema in &checks.any_of {
                let tried = schema.value(value, old, path);
                let fits = tried.errors.is_empty();
                if fits || best.as_ref().is_none_or(|best| tried.passed > best.passed) {
                    best = Some(tried);
                }
                if fits {
                    break;
                }
            }
            if best.as_ref().is_some_and(|best| !best.errors.is_empty()) {
                found.add(loose(format!("{name} must validate at least one schema (anyOf)")));
            }
            best.into_iter().for_each(|best| found.merge(best));
        }
        if !checks.one_of.is_empty() {
            let (mut first, mut best, mut valid) = (None, None::<Verdict>, 0);
            for schema in &checks.one_of {
                let tried = schema.value(value, old, path);
                if tried.errors.is_empty() {
                    valid += 1;
                    best = None;
                    first.get_or_insert(tried);
                } else if valid == 0 && best.as_ref().is_none_or(|best| tried.passed > best.passed) {
                    best = Some(tried);
                }
            }
            if valid == 1 {
                first.into_iter().for_each(|first| found.merge(first));
            } else {
                let how_many =
                    if valid == 0 { "Found none valid".into() } else { format!("Found {valid} valid alternatives") };
                found.add(loose(format!("{name} must validate one and only one schema (oneOf). {how_many}")));
                best.into_iter().for_each(|best| found.merge(best));
            }
        }
        if !checks.all_of.is_empty() {
            let mut valid = 0;
            for schema in &checks.all_of {
                let tried = schema.value(value, old, path);
                valid += usize::from(tried.errors.is_empty());
                found.merge(tried);
            }
            if valid != checks.all_of.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                found.add(loose(format!("{name} must validate all the schemas (allOf){none}")));
            }
        }
        if let Some(schema) = &checks.not
            && schema.value(value, old, path).errors.is_empty()
        {
            found.add(loose(format!("{name} must not validate the schema (not)")));
        }
        found
    }
}

fn too_many(path: &str, count: i64, max: i64) -> Error {
    let detail = format!("must have at most {max} {}", if max == 1 { "item" } else { "items" });
    at(ErrorKind::TooMany, path, Some(count.to_string()), detail)
}

impl Checks {
    /// Only the first of what is wrong with a text is told.
    fn text(&self, text: &str, path: &str) -> Option<Error> {
        let length = text.chars().count() as i64;
        if let Some(max) = self.max_length.filter(|max| length > *max) {
            let detail = format!("may not be more than {max} {}", if max == 1 { "byte" } else { "bytes" });
            return Some(at(ErrorKind::TooLong, path, None, detail));
        }
        if let Some(min) = self.min_length.filter(|min| length < *min) {
            return Some(should(path, go_quote(text), &format!("be at least {min} chars long")));
        }
        let pattern = self.pattern.as_ref().filter(|pattern| !pattern.fits(text))?;
        Some(should(path, go_quote(text), &format!("match '{}'", pattern.source)))
    }

    fn bad_format(&self, text: &str, path: &str) -> Option<Error> {
        (!formats::fits(&self.format, text)).then(|| of_type(path, &self.format, text))
    }

    fn not_allowed(&self, value: &Value, path: &str) -> Option<Error> {
        // A number is turned into the type of the number that it is held against, as Go does.
        let same = |a: &Value| match (a, value) {
            (_, Value::Null) => false,
            (Value::Number(a), Value::Number(b)) => match a.as_i64() {
                Some(a) => b.as_i64().or_else(|| b.as_f64().map(|f| f as i64)) == Some(a),
                None => a.as_f64() == b.as_f64(),
            },
            (a, b) => a == b,
        };
        if self.allowed.is_empty() || self.allowed.iter().any(same) {
            return None;
        }
        let text = |v: &Value| match v {
            Value::String(s) => go_quote(s),
            other => go_quote(&go_value(other)),
        };
        let supported: Vec<String> = self.allowed.iter().map(text).collect();
        let detail = format!("supported values: {}", supported.join(", "));
        Some(at(ErrorKind::NotSupported, path, Some(go_value(value)), detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(schema: Value, value: Value) -> Vec<String> {
        let schema = Structural::parse(&json!({"type": "object", "properties": {"v": schema}}));
        schema.validate(&json!({"v": value})).iter().map(|e| e.body()).collect()
    }

    #[test]
    fn numbers_are_held_against_bounds_of_their_own_type() {
        let number = json!({"type": "number", "minimum": -1.5, "maximum": 1e7, "multipleOf": 0.5});
        // An integer is compared with integers: the bound is cut, and half of nothing is no factor.
        let no_factor = "Invalid value: 0: factor MultipleOf declared for v must be positive: 0";
        assert_eq!(found(number.clone(), json!(-1)), [no_factor]);
        let less = "Invalid value: -2: v in body should be greater than or equal to -1";
        assert_eq!(found(number.clone(), json!(-2)), [no_factor, less]);
        assert!(found(number.clone(), json!(1.5)).is_empty());
        assert_eq!(
            found(number, json!(1e10)),
            ["Invalid value: 1e+10: v in body should be less than or equal to 1e+07"]
        );
        let integer = json!({"type": "integer", "format": "int32", "enum": [1, 2]});
        assert_eq!(
            found(integer.clone(), json!(1.5)),
            [
                r#"Invalid value: "float64": v in body must be of type int32: "float64""#,
                r#"Invalid value: "": Checked value must be of type integer with format int32 in v"#,
            ]
        );
        assert!(found(integer, json!(1.0)).is_empty());
    }

    #[test]
    fn of_alternatives_the_one_that_came_furthest_is_told() {
        let schema = json!({"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "string"}},
            "anyOf": [{"required": ["x"]}, {"required": ["y"], "properties": {"y": {"minLength": 3}}}]});
        assert_eq!(
            found(schema, json!({"y": "ab"})),
            [
                r#"Invalid value: "": "v" must validate at least one schema (anyOf)"#,
                r#"Invalid value: "ab": v.y in body should be at least 3 chars long"#,
            ]
        );
        let text = json!({"type": "string", "minLength": 2, "pattern": "^a"});
        assert_eq!(found(text, json!("b")), [r#"Invalid value: "b": v in body should be at least 2 chars long"#]);
        let none = json!({"type": "object", "additionalProperties": false});
        assert_eq!(found(none, json!({"a": 1})), [r#"Invalid value: "a": v.a in body is a forbidden property"#]);
        let null = json!({"type": "string", "nullable": true, "enum": ["a", null]});
        assert_eq!(found(null, Value::Null), [r#"Unsupported value: null: supported values: "a", "null""#]);
    }

    #[test]
    fn texts_fit_their_formats() {
        for (format, good, bad) in [
            ("date-time", "2020-01-02t03:04:05.5+01:00", "2020-01-02 03:04:05Z"),
            ("date", "2020-02-29", "2020-02-30"),
            ("duration", "3 minutes", "inf"),
            ("byte", "YWI=", ""),
            ("hostname", "a-", "a.1"),
            ("ipv4", "01.2.3.4", "1.2.3"),
            ("cidr", "1.2.3.0/24", "1.2.3.4/33"),
            ("isbn", "978-0321751041", "0321751044"),
            ("creditcard", "4111-1111-1111-1111", "4111111111111112"),
            ("ssn", "111-11-1111", "111111111"),
            ("rgbcolor", "rgb(255, 0,1)", "rgb(256,0,0)"),
            ("uri", "http://[::1]:80/", "http://a:port/"),
            ("k8s-short-name", "abc", "a.b"),
        ] {
            let schema = json!({"type": "string", "format": format});
            assert!(found(schema.clone(), json!(good)).is_empty(), "{format} {good}");
            assert_eq!(found(schema, json!(bad)).len(), 1, "{format} {bad}");
        }
        // Of what is unknown nothing is asked.
        assert!(found(json!({"type": "integer", "format": "uint32"}), json!(-1)).is_empty());
    }
}
