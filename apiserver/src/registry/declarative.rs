//! Rules that upstream declares beside the fields of its newest kinds (upstream: `apimachinery/pkg/api/validate`).
//!
//! What did not change is not checked again: a [`Field`] knows the value it replaces, if it is known which one that is, and its
//! rules are asked only if it [has changed](Field::changed).

use super::checks::{self, IMMUTABLE};
use coxswain_api::codec::json;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, schema};

/// A field of an object, and what it was.
pub(super) struct Field<'a> {
    new: View<'a>,
    /// None on create, within what was not there before, and for items of which nobody knows what they were.
    old: Option<View<'a>>,
    is_update: bool,
}

impl<'a> Field<'a> {
    pub fn root(object: &'a Value, old: Option<&'a Value>) -> Self {
        Self { new: View::root(object), old: old.map(View::root), is_update: old.is_some() }
    }

    pub fn child(&self, name: &'static str) -> Self {
        let old = self.old.as_ref().filter(|old| old.exists()).map(|old| old.child(name));
        Self { new: self.new.child(name), old, is_update: self.is_update }
    }

    /// The child, if its rules are to be asked.
    pub fn changed_child(&self, name: &'static str) -> Option<Self> {
        Some(self.child(name)).filter(Self::changed)
    }

    pub fn view(&self) -> &View<'a> {
        &self.new
    }

    pub fn exists(&self) -> bool {
        self.new.exists()
    }

    /// Whether this is not an update that left the field as it was.
    pub fn changed(&self) -> bool {
        let is_same = |old: &View<'_>| same(self.new.value(), old.value());
        !(self.is_update && self.old.as_ref().is_some_and(is_same))
    }

    /// Refuses any change; whether the rules after this one are to be asked.
    pub fn immutable(&self, errors: &mut ErrorList) -> bool {
        if self.is_update {
            errors.push(Error::invalid(self.new.path(), &Value::Null, IMMUTABLE));
        }
        !self.is_update
    }

    /// Whether the list is short enough for the rules after this one to be asked.
    pub fn max_items(&self, max: usize, errors: &mut ErrorList) -> bool {
        let is_short = self.new.len() <= max;
        if !is_short {
            errors.push(Error::too_many(self.new.path(), self.new.len(), max as i64));
        }
        is_short
    }

    /// A text that must be given and be of a form.
    pub fn required_text(&self, form: Form, errors: &mut ErrorList) {
        if self.changed() {
            if self.new.is_empty() {
                errors.push(Error::required(self.new.path(), ""));
            } else {
                self.form(form, errors);
            }
        }
    }

    /// A text that is of a form if it is given.
    pub fn optional_text(&self, form: Form, errors: &mut ErrorList) {
        if self.exists() && self.changed() {
            self.form(form, errors);
        }
    }

    pub fn form(&self, form: Form, errors: &mut ErrorList) {
        checks::all(&self.new, form(self.new.str()).into_iter().map(in_bytes).collect(), errors);
    }

    /// A number that is at least `min` if it is given.
    pub fn optional_minimum(&self, min: i64, errors: &mut ErrorList) {
        if self.exists() && self.changed() {
            self.minimum(min, errors);
        }
    }

    pub fn minimum(&self, min: i64, errors: &mut ErrorList) {
        if self.new.i64() < min {
            let why = format!("must be greater than or equal to {min}");
            errors.push(Error::invalid(self.new.path(), self.new.i64(), why));
        }
    }

    pub fn maximum(&self, max: i64, errors: &mut ErrorList) {
        if self.new.i64() > max {
            let why = format!("must be less than or equal to {max}");
            errors.push(Error::invalid(self.new.path(), self.new.i64(), why));
        }
    }

    /// Exactly one of the members is given. An update that gives the same ones as before is let be.
    pub fn union(&self, members: &[&'static str], errors: &mut ErrorList) {
        let given = |view: &View<'_>| -> Vec<&'static str> {
            members.iter().copied().filter(|member| view.child(member).exists()).collect()
        };
        let now = given(&self.new);
        if self.is_update && self.old.as_ref().is_some_and(|old| old.exists() && given(old) == now) {
            return;
        }
        let all: Vec<String> = members.iter().map(|member| format!("`{member}`")).collect();
        let all = all.join(", ");
        match now.as_slice() {
            [] => errors.push(Error::invalid(self.new.path(), "", format!("must specify one of: {all}"))),
            [_] => {}
            several => {
                let several = format!("{{{}}}", several.join(", "));
                let why = format!("must specify exactly one of: {all}");
                errors.push(Error::invalid(self.new.path(), several, why));
            }
        }
    }

    /// The items are told apart by a key; one that is there again is shown as its type has it.
    pub fn unique(&self, key: &'static str, schema: &str, errors: &mut ErrorList) {
        let mut seen: Vec<&str> = Vec::new();
        for item in self.new.items() {
            let name = item.child(key).str();
            if seen.contains(&name) {
                let shown = shown(&item, schema);
                errors.push(Error { bad_value: Some(shown), ..Error::duplicate(item.path(), "") });
            }
            seen.push(name);
        }
    }

    /// The items of a list. Those that a key relates to equal ones from before are left out.
    pub fn items(&self, key: Option<&'static str>) -> Vec<Self> {
        let before = |item: &View<'a>| -> Option<View<'a>> {
            let (key, old) = (key?, self.old.as_ref()?);
            old.items().find(|old| old.child(key).str() == item.child(key).str())
        };
        let fields = self.new.items().map(|new| Self { old: before(&new), new, is_update: self.is_update });
        fields.filter(Self::changed).collect()
    }
}

/// Equal as upstream's types are: nulls and empty lists are as if they were absent, at any depth. Of texts, the decoder has dropped
/// those whose emptiness says nothing.
fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    let is_given = |value: &&Value| match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        _ => true,
    };
    match (a.filter(is_given), b.filter(is_given)) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            a.keys().chain(b.keys()).all(|key| same(a.get(key), b.get(key)))
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(Some(a), Some(b)))
        }
        (a, b) => a == b,
    }
}

/// Declared rules count bytes where others count characters of the same text.
pub(super) fn in_bytes(why: String) -> String {
    match why.strip_suffix(" characters") {
        Some(rest) => format!("{rest} bytes"),
        None => why,
    }
}

/// What is wrong with a text.
pub(super) type Form = fn(&str) -> Vec<String>;

/// JSON of a struct, or of a list of them, in the order of its fields.
pub(super) fn shown(view: &View<'_>, schema: &str) -> String {
    let Some(value) = view.value() else { return "null".into() };
    if value.is_array() {
        let items: Vec<String> = view.items().map(|item| shown(&item, schema)).collect();
        return format!("[{}]", items.join(","));
    }
    let mut out = Vec::new();
    match schema::builtin().get(schema) {
        Some(schema) => json::encode(value, schema, &mut out),
        None => out.extend(value.to_string().into_bytes()),
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub(super) const CONDITION: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Condition";

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    #[test]
    fn what_is_empty_is_as_if_it_were_absent() {
        let [a, b] = [json!({"a": [{"b": null}], "d": []}), json!({"a": [{}]})];
        assert!(same(Some(&a), Some(&b)));
        for other in [json!({"a": {}}), json!({"a": ""})] {
            assert!(!same(Some(&other), Some(&json!({}))));
        }
    }

    #[test]
    fn what_was_wrong_before_is_let_be_and_what_changes_is_checked() {
        let errors_of = |new: &Value, old: Option<&Value>| -> Vec<String> {
            let mut errors = ErrorList::new();
            let root = Field::root(new, old);
            root.union(&["a", "b"], &mut errors);
            for item in root.child("list").items(Some("name")) {
                item.child("size").minimum(1, &mut errors);
            }
            errors.iter().map(ToString::to_string).collect()
        };
        let wrong = json!({"a": {}, "b": {}, "list": [{"name": "x", "size": 0}]});
        let [both, small] = [
            "<nil>: Invalid value: \"{a, b}\": must specify exactly one of: `a`, `b`",
            "list[0].size: Invalid value: 0: must be greater than or equal to 1",
        ];
        assert_eq!(errors_of(&wrong, None), [both, small]);
        assert_eq!(errors_of(&wrong, Some(&wrong)), [""; 0]);
        let before = json!({"list": [{"name": "y", "size": 0}, {"name": "x", "size": 3}]});
        assert_eq!(errors_of(&wrong, Some(&before)), [both, small]);
    }
}
