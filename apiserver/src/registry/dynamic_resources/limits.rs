//! How long lists may be.

use coxswain_api::field::{Error, ErrorList, View};
use std::collections::HashSet;

/// Whether the list, or map, is no longer than that. If it is, upstream looks at nothing in it.
pub(super) fn at_most(list: &View<'_>, max: usize, errors: &mut ErrorList) -> bool {
    if list.len() > max {
        errors.push(Error::too_many(list.path(), list.len(), max as i64));
    }
    list.len() <= max
}

/// Checks every item.
pub(super) fn each(list: &View<'_>, max: usize, errors: &mut ErrorList, check: impl Fn(&View<'_>, &mut ErrorList)) {
    if at_most(list, max, errors) {
        list.items().for_each(|item| check(&item, errors));
    }
}

/// Checks every item, and that the field `key` tells them apart.
pub(super) fn set(
    list: &View<'_>,
    max: usize,
    key: &'static str,
    errors: &mut ErrorList,
    check: impl Fn(&View<'_>, &mut ErrorList),
) {
    each(list, max, errors, check);
    let mut seen = HashSet::new();
    for item in list.items().take_while(|_| list.len() <= max) {
        let name = item.child(key).str();
        if !seen.insert(name) {
            errors.push(Error::duplicate(item.path(), name));
        }
    }
}
