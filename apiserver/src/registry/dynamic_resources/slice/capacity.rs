//! What may be asked of a device's capacity that several claims share (upstream: `validateRequestPolicy`).

use super::at_most;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::quantity::Quantity;
use std::collections::HashSet;

const VALUES_MAX: usize = 10;

pub(super) fn request_policy(capacity: &View<'_>, policy: &View<'_>, errors: &mut ErrorList) {
    let (values, range, default) = (policy.child("validValues"), policy.child("validRange"), policy.child("default"));
    let capacity = amount(capacity).unwrap_or_default();
    let (kind, missing) = match (!values.is_empty(), range.exists()) {
        (true, true) => {
            let why = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
            return errors.push(Error::forbidden(policy.path(), why));
        }
        (true, false) => (Kind::Values, "required when validValues is defined"),
        (false, true) => (Kind::Range, "required when validRange is defined"),
        (false, false) => return,
    };
    let Some(default) = amount(&default) else {
        return errors.push(Error::required(default.path(), missing));
    };
    match kind {
        Kind::Values => valid_values(&default, &capacity, &values, errors),
        Kind::Range => valid_range(&default, &capacity, &range, errors),
    }
}

enum Kind {
    Values,
    Range,
}

fn amount(value: &View<'_>) -> Option<Quantity> {
    Quantity::parse(value.opt_str()?).ok()
}

fn invalid(at: &View<'_>, shown: &Quantity, why: impl Into<String>, errors: &mut ErrorList) {
    errors.push(Error::invalid(at.path(), shown.to_string(), why));
}

fn valid_values(default: &Quantity, capacity: &Quantity, values: &View<'_>, errors: &mut ErrorList) {
    let all: Vec<(View<'_>, Quantity)> = values.items().filter_map(|v| amount(&v).map(|q| (v, q))).collect();
    for pair in all.windows(2) {
        if pair[0].1 > pair[1].1 {
            invalid(&pair[1].0, &pair[1].1, "values must be sorted in ascending order", errors);
        }
    }
    let mut has_default = false;
    if at_most(values, VALUES_MAX, errors) {
        for (at, value) in &all {
            if value > capacity {
                invalid(at, value, format!("option is larger than capacity value: {capacity}"), errors);
            }
            has_default |= value == default;
        }
        let mut seen = HashSet::new();
        for (at, value) in &all {
            if !seen.insert(value.value()) {
                errors.push(Error::duplicate(at.path(), value.value().to_string()));
            }
        }
    }
    if !has_default {
        invalid(values, default, "default value is not valid according to the requestPolicy", errors);
    }
}

fn valid_range(default: &Quantity, capacity: &Quantity, range: &View<'_>, errors: &mut ErrorList) {
    let [at_min, at_max, at_step] = ["min", "max", "step"].map(|field| range.child(field));
    let Some(min) = amount(&at_min) else {
        return errors.push(Error::required(at_min.path(), "required when validRange is defined"));
    };
    if min > *capacity {
        invalid(&at_min, &min, format!("min is larger than capacity value: {capacity}"), errors);
    }
    if *default < min {
        invalid(&at_min, default, format!("default is less than min: {min}"), errors);
    }
    let max = amount(&at_max);
    if let Some(max) = &max {
        if min > *max {
            invalid(&at_max, &min, format!("min is larger than max: {max}"), errors);
        }
        if max > capacity {
            invalid(&at_max, max, format!("max is larger than capacity value: {capacity}"), errors);
        }
        if default > max {
            invalid(&at_max, default, format!("default is more than max: {max}"), errors);
        }
    }
    if let Some(step) = amount(&at_step) {
        let mut next = min.clone();
        next.add(&step);
        if next > *capacity {
            invalid(&at_step, &step, format!("one step {next} is larger than capacity value: {capacity}"), errors);
        }
        for value in std::iter::once(default).chain(&max) {
            let distance = value.value() - min.value();
            // A step of zero leads nowhere but to where it starts.
            if distance.checked_rem(step.value()).unwrap_or(distance) != 0 {
                let why = format!("value is not a multiple of a given step ({step}) from ({min})");
                invalid(&at_step, value, why, errors);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    #[test]
    fn policies_fit_the_capacity() {
        for (policy, expected) in [
            (json!({"default": "1", "validValues": ["1", "2"]}), &[][..]),
            (json!({"validValues": ["1"]}), &["default: Required value: required when validValues is defined"]),
            (
                json!({"default": "3", "validValues": ["2", "1", "20"]}),
                &[
                    "validValues[1]: Invalid value: \"1\": values must be sorted in ascending order",
                    "validValues[2]: Invalid value: \"20\": option is larger than capacity value: 10",
                    "validValues: Invalid value: \"3\": default value is not valid according to the requestPolicy",
                ],
            ),
            (
                json!({"default": "3", "validRange": {"min": "2", "max": "8", "step": "2"}}),
                &["validRange.step: Invalid value: \"3\": value is not a multiple of a given step (2) from (2)"],
            ),
            (
                json!({"default": "3", "validRange": {}}),
                &["validRange.min: Required value: required when validRange is defined"],
            ),
        ] {
            let mut errors = ErrorList::new();
            request_policy(&View::root(&json!("10")), &View::root(&policy), &mut errors);
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(texts, expected, "{policy}");
        }
    }
}
