//! Bounds of numbers. Upstream compares an integer with a bound that is cut to an integer, and so do we.

use super::super::Checks;
use super::{at, loose, should};
use crate::field::{Error, ErrorKind, ErrorList, go_float_v, go_value};
use serde_json::{Number, Value};

/// Whether a float is an integer, or so near to one that upstream takes it for that.
pub(super) fn is_whole(f: f64) -> bool {
    const SAFE_MAX: f64 = 9_007_199_254_740_991.0;
    const NEAR: f64 = 1e-9;
    if !f.is_finite() || f.abs() > SAFE_MAX {
        return false;
    }
    let whole = f.trunc();
    if f == whole {
        return true;
    }
    whole != 0.0 && (f - whole).abs() / (f.abs() + whole.abs()) < NEAR
}

/// A float as an integer of Go, which overflows to the least one.
fn cut(f: f64) -> i64 {
    if f >= i64::MIN as f64 && f < i64::MAX as f64 { f as i64 } else { i64::MIN }
}

/// Whether a number can be written as its type and format want it.
fn fits(number: &Number, ty: &str, format: &str) -> bool {
    let float = number.as_f64().unwrap_or(f64::NAN);
    let integer = || number.as_i64().or_else(|| (float.fract() == 0.0 && cut(float) != i64::MIN).then(|| cut(float)));
    match (ty, format) {
        ("integer", "int32") => integer().is_some_and(|n| i32::try_from(n).is_ok()),
        ("integer", _) => integer().is_some(),
        (_, "float") => float.abs() <= f64::from(f32::MAX),
        _ => true,
    }
}

pub(super) fn check(checks: &Checks, number: &Number, ty: &str, path: &str) -> ErrorList {
    let format = match (ty, &*checks.format) {
        ("integer", format @ ("int32" | "int64")) | ("number", format @ ("float" | "double")) => format,
        _ => "",
    };
    let of_range = |what: &str| {
        let format = if format.is_empty() { "(default format)".to_owned() } else { format!("with format {format}") };
        loose(format!("{what} value must be of type {ty} {format} in {path}"))
    };
    let mut errors = ErrorList::new();
    if !fits(number, ty, format) {
        errors.push(of_range("Checked"));
    }
    let shown = go_value(&Value::Number(number.clone()));
    // A bound that does not fit the type is told of, and compared as a float.
    let mut bound = |limit: Option<f64>, what: &str, compare: &dyn Fn(Limit) -> Option<Error>| {
        let Some(limit) = limit else { return };
        let is_fit = Number::from_f64(limit).is_some_and(|limit| fits(&limit, ty, format));
        if !is_fit {
            errors.push(of_range(what));
        }
        errors.extend(compare(match number.as_i64() {
            Some(value) if is_fit => Limit::Integer(value, cut(limit)),
            _ => Limit::Float(number.as_f64().unwrap_or_default(), limit),
        }));
    };
    bound(checks.multiple_of, "MultipleOf", &|limit| {
        let factor = limit.text();
        if !limit.is_positive() {
            let detail = format!("factor MultipleOf declared for {path} must be positive: {factor}");
            return Some(at(ErrorKind::Invalid, path, Some(factor), detail));
        }
        (!limit.divides()).then(|| should(path, shown.clone(), &format!("be a multiple of {factor}")))
    });
    for (is_max, limit, exclusive) in
        [(false, checks.minimum, checks.exclusive_minimum), (true, checks.maximum, checks.exclusive_maximum)]
    {
        let (what, word) =
            if is_max { ("Maximum boundary", "less than") } else { ("Minimum boundary", "greater than") };
        bound(limit, what, &|limit| {
            let or_equal = if exclusive { "" } else { " or equal to" };
            let wrong = limit.is_passed(is_max, exclusive);
            wrong.then(|| should(path, shown.clone(), &format!("be {word}{or_equal} {}", limit.text())))
        });
    }
    errors
}

/// A number and the bound that it is held against.
enum Limit {
    Integer(i64, i64),
    Float(f64, f64),
}

impl Limit {
    fn text(&self) -> String {
        match self {
            Limit::Integer(_, limit) => limit.to_string(),
            Limit::Float(_, limit) => go_float_v(*limit),
        }
    }

    fn is_positive(&self) -> bool {
        match self {
            Limit::Integer(_, limit) => *limit > 0,
            Limit::Float(_, limit) => *limit > 0.0,
        }
    }

    fn divides(&self) -> bool {
        match self {
            Limit::Integer(value, factor) => value % factor == 0,
            Limit::Float(value, factor) if *factor < 1.0 => is_whole(1.0 / factor * value),
            Limit::Float(value, factor) => is_whole(value / factor),
        }
    }

    fn is_passed(&self, is_max: bool, exclusive: bool) -> bool {
        let order = match self {
            Limit::Integer(value, limit) => value.cmp(limit),
            Limit::Float(value, limit) => value.partial_cmp(limit).unwrap_or(std::cmp::Ordering::Equal),
        };
        let order = if is_max { order } else { order.reverse() };
        order.is_gt() || exclusive && order.is_eq()
    }
}
