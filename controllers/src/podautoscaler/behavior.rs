//! How fast a workload may grow and shrink: stabilization windows and scaling policies. Pure.

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerSpec};

use crate::config::HorizontalPodAutoscaling;

/// Entries older than the longest window are dropped, so this bounds what is kept by time.
const WINDOW_SECONDS_MAX: i64 = 3600;

/// What was recommended and what was done lately.
#[derive(Default)]
pub(super) struct History {
    recommendations: Vec<(Timestamp, i32)>,
    changes: Vec<(Timestamp, i32)>,
}

impl History {
    pub(super) fn note_change(&mut self, change: i32, now: Timestamp) {
        self.changes.push((now, change));
        self.changes.retain(|(at, _)| now.as_second() - at.as_second() <= WINDOW_SECONDS_MAX);
    }

    /// The growth (or shrinkage, as a negative number) of the last so many seconds.
    fn changed(&self, seconds: i32, up: bool, now: Timestamp) -> i32 {
        self.changes
            .iter()
            .filter(|(at, change)| now.as_second() - at.as_second() < i64::from(seconds) && (*change > 0) == up)
            .map(|(_, change)| change)
            .sum()
    }
}

/// The size to take, and the ScalingLimited condition: status, reason, message.
pub(super) fn limit(
    spec: &HorizontalPodAutoscalerSpec,
    history: &mut History,
    current: i32,
    proposed: i32,
    config: &HorizontalPodAutoscaling,
    now: Timestamp,
) -> (i32, &'static str, &'static str, &'static str) {
    let behavior = spec.behavior.as_ref();
    let up = behavior.and_then(|behavior| behavior.scale_up.as_ref());
    let down = behavior.and_then(|behavior| behavior.scale_down.as_ref());
    let window = |rules: Option<&HPAScalingRules>, default: i64| {
        rules.and_then(|rules| rules.stabilization_window_seconds).map_or(default, i64::from)
    };
    let up_window = window(up, 0);
    let down_window = window(down, config.downscale_stabilization.as_secs() as i64);
    history.recommendations.retain(|(at, _)| now.as_second() - at.as_second() <= WINDOW_SECONDS_MAX);
    history.recommendations.push((now, proposed));
    let within = |seconds: i64| {
        history
            .recommendations
            .iter()
            .filter(move |(at, _)| now.as_second() - at.as_second() <= seconds)
            .map(|(_, size)| *size)
    };
    // Growing waits until the whole window asks for it, and so does shrinking.
    let lowest = within(up_window).min().unwrap_or(proposed);
    let highest = within(down_window).max().unwrap_or(proposed);
    let stabilized = current.max(lowest).min(highest.max(proposed)).min(highest);

    let least = spec.min_replicas.unwrap_or(1);
    if stabilized > current {
        let allowed = match up {
            Some(rules) => most(rules, history, current, now),
            // Without a policy at most doubled, and by at least four.
            None => (current * 2).max(4).max(current + 4),
        };
        if stabilized > allowed.min(spec.max_replicas) {
            return if allowed < spec.max_replicas {
                (
                    allowed,
                    "True",
                    "ScaleUpLimit",
                    "the desired replica count is increasing faster than the maximum scale rate",
                )
            } else {
                (
                    spec.max_replicas,
                    "True",
                    "TooManyReplicas",
                    "the desired replica count is more than the maximum replica count",
                )
            };
        }
    } else if stabilized < current {
        let allowed = down.map_or(0, |rules| fewest(rules, history, current, now));
        if stabilized < allowed.max(least) {
            return if allowed > least {
                (
                    allowed,
                    "True",
                    "ScaleDownLimit",
                    "the desired replica count is decreasing faster than the maximum scale rate",
                )
            } else {
                (least, "True", "TooFewReplicas", "the desired replica count is less than the minimum replica count")
            };
        }
    } else if proposed > spec.max_replicas {
        return (
            current,
            "True",
            "TooManyReplicas",
            "the desired replica count is more than the maximum replica count",
        );
    } else if proposed < least {
        return (current, "True", "TooFewReplicas", "the desired replica count is less than the minimum replica count");
    }
    (stabilized, "False", "DesiredWithinRange", "the desired count is within the acceptable range")
}

/// How large the policies allow the workload to be now.
fn most(rules: &HPAScalingRules, history: &History, current: i32, now: Timestamp) -> i32 {
    if rules.select_policy.as_deref() == Some("Disabled") {
        return current;
    }
    let sizes = rules.policies.iter().flatten().map(|policy| {
        let start = current - history.changed(policy.period_seconds, true, now);
        match policy.type_.as_str() {
            "Pods" => start + policy.value,
            _ => (f64::from(start) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32,
        }
    });
    let chosen = if rules.select_policy.as_deref() == Some("Min") { sizes.min() } else { sizes.max() };
    chosen.unwrap_or(i32::MAX)
}

/// How small the policies allow the workload to be now.
fn fewest(rules: &HPAScalingRules, history: &History, current: i32, now: Timestamp) -> i32 {
    if rules.select_policy.as_deref() == Some("Disabled") {
        return current;
    }
    let sizes = rules.policies.iter().flatten().map(|policy| {
        let start = current - history.changed(policy.period_seconds, false, now);
        match policy.type_.as_str() {
            "Pods" => start - policy.value,
            _ => (f64::from(start) * (1.0 - f64::from(policy.value) / 100.0)) as i32,
        }
    });
    let chosen = if rules.select_policy.as_deref() == Some("Min") { sizes.max() } else { sizes.min() };
    chosen.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    #[test]
    fn shrinking_waits_for_the_window_and_growth_keeps_to_the_limits() {
        let spec = HorizontalPodAutoscalerSpec { min_replicas: Some(1), max_replicas: 10, ..Default::default() };
        let config = Config::default().hpa;
        let mut history = History::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(limit(&spec, &mut history, 2, 5, &config, at(0)).0, 5);
        assert_eq!(limit(&spec, &mut history, 5, 2, &config, at(60)).0, 5, "five were wanted a minute ago");
        assert_eq!(limit(&spec, &mut history, 5, 2, &config, at(400)).0, 2);
        let (size, limited, reason, _) = limit(&spec, &mut history, 8, 20, &config, at(800));
        assert_eq!((size, limited, reason), (10, "True", "TooManyReplicas"));
    }
}
