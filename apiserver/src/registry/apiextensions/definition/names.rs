//! The names of a definition, those that it asks for and those that it was given.

use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::names;

/// The names that a specification cannot do without.
pub(super) fn check_required(names: &View<'_>, errors: &mut ErrorList) {
    for field in ["plural", "singular", "kind", "listKind"] {
        let value = names.child_named(field);
        if value.is_empty() {
            errors.push(Error::required(value.path(), ""));
        }
    }
}

pub(super) fn check(names: &View<'_>, errors: &mut ErrorList) {
    for (field, mixed_case) in [("plural", false), ("singular", false), ("kind", true), ("listKind", true)] {
        let value = names.child_named(field);
        if value.is_empty() {
            continue;
        }
        let text = if mixed_case { value.str().to_lowercase() } else { value.str().to_owned() };
        let wrong = names::dns1035_label(&text, false);
        if !wrong.is_empty() {
            let but = if mixed_case { "may have mixed case, but should otherwise match: " } else { "" };
            errors.push(Error::invalid(value.path(), &value, format!("{but}{}", wrong.join(","))));
        }
    }
    for name in names.child("shortNames").items() {
        check_label(&name, errors);
    }
    let (kind, list_kind) = (names.child("kind"), names.child("listKind"));
    if !kind.is_empty() && kind.str() == list_kind.str() {
        errors.push(Error::invalid(list_kind.path(), &list_kind, "kind and listKind may not be the same"));
    }
    for name in names.child("categories").items() {
        check_label(&name, errors);
    }
}

/// A label, whose faults are told of in one error.
pub(super) fn check_label(value: &View<'_>, errors: &mut ErrorList) {
    let wrong = names::dns1035_label(value.str(), false);
    if !wrong.is_empty() {
        errors.push(Error::invalid(value.path(), value.str(), wrong.join(",")));
    }
}
