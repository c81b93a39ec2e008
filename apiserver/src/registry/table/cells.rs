//! What cells are made of: ages, selectors, containers (upstream: `printers/internalversion` and `util/duration`).

use coxswain_api::Value;
use coxswain_api::field::View;
use coxswain_api::selector::Selector;
use std::collections::BTreeSet;

pub(super) const NONE: &str = "<none>";
pub(super) const UNSET: &str = "<unset>";
pub(super) const UNKNOWN: &str = "<unknown>";

pub(super) fn name(object: &View<'_>) -> Value {
    object.child("metadata").child("name").str().into()
}

/// How long ago the object was made.
pub(super) fn age(object: &View<'_>, now: jiff::Timestamp) -> Value {
    since(&object.child("metadata").child("creationTimestamp"), now).into()
}

/// How long ago a time was, `<unknown>` if there is none.
pub(super) fn since(time: &View<'_>, now: jiff::Timestamp) -> String {
    match time.opt_str().and_then(|t| t.parse::<jiff::Timestamp>().ok()) {
        Some(then) => human_duration(now.as_second() - then.as_second()),
        None => UNKNOWN.into(),
    }
}

/// A duration in seconds with two or three digits of precision (upstream: `duration.HumanDuration`).
pub(super) fn human_duration(seconds: i64) -> String {
    // Clocks of two machines may differ a little.
    if seconds < -1 {
        return "<invalid>".into();
    }
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let two = |large: i64, unit: &str, small: i64, part: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{part}") }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => two(hours / 24, "d", hours % 24, "h"),
        () if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        () if hours < 24 * 365 * 8 => two(hours / 24 / 365, "y", hours / 24 % 365, "d"),
        () => format!("{}y", hours / 24 / 365),
    }
}

/// `a=b,c=d`, or `<none>`.
pub(super) fn labels(map: &View<'_>) -> String {
    let pairs: Vec<String> = map.entries().map(|(k, v)| format!("{k}={}", v.str())).collect();
    if pairs.is_empty() { NONE.into() } else { pairs.join(",") }
}

/// A LabelSelector as text, `empty` if it selects everything.
pub(super) fn selector(value: &View<'_>, empty: &str) -> String {
    let text = Selector::from_label_selector(value.value()).map(|s| s.to_string()).unwrap_or_default();
    if text.is_empty() { empty.into() } else { text }
}

/// Names and images of the containers of a pod spec.
pub(super) fn containers(spec: &View<'_>) -> [Value; 2] {
    let all = |field: &'static str| -> Value {
        let list: Vec<&str> = spec.child("containers").items().map(|c| c.child(field).str()).collect();
        list.join(",").into()
    };
    [all("name"), all("image")]
}

pub(super) fn text_or(value: &View<'_>, default: &str) -> Value {
    if value.str().is_empty() { default.into() } else { value.str().into() }
}

/// A number or text as text.
pub(super) fn int_or_string(value: &View<'_>, default: &str) -> Value {
    match value.value() {
        Some(Value::String(s)) => s.clone().into(),
        Some(Value::Number(n)) => n.to_string().into(),
        _ => default.into(),
    }
}

/// The first `max` of a list, and how many more there are.
pub(super) fn some_of(list: &[String], max: usize, separator: &str) -> String {
    if list.len() > max {
        return format!("{} + {} more...", list[..max].join(separator), list.len() - max);
    }
    list.join(separator)
}

/// The addresses of a load balancer, each once.
pub(super) fn load_balancer(status: &View<'_>) -> String {
    let ingress = status.child("loadBalancer").child("ingress");
    let addresses: BTreeSet<&str> = ingress
        .items()
        .map(|i| {
            let ip = i.child("ip").str();
            if ip.is_empty() { i.child("hostname").str() } else { ip }
        })
        .filter(|a| !a.is_empty())
        .collect();
    addresses.into_iter().collect::<Vec<_>>().join(",")
}

pub(super) fn strings(list: &View<'_>) -> Vec<String> {
    list.items().map(|v| v.str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short_and_precise_enough() {
        let hour = 3600;
        let cases = [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (121, "2m1s"),
            (660, "11m"),
            (3 * hour, "3h"),
            (7 * hour + 60, "7h1m"),
            (30 * hour, "30h"),
            (51 * hour, "2d3h"),
            (24 * 200 * hour, "200d"),
            (24 * 800 * hour, "2y70d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds), text);
        }
    }
}
