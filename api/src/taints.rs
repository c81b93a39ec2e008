//! Taints of nodes and what tolerates them (upstream: `k8s.io/api/core/v1/toleration.go`). Scheduler, controllers and kubelets
//! each keep them in a form of their own, so that they are texts here.

use crate::features::Feature;

#[derive(Clone, Copy, Debug)]
pub struct Taint<'a> {
    pub key: &'a str,
    pub value: &'a str,
    pub effect: &'a str,
}

#[derive(Clone, Copy, Debug)]
pub struct Toleration<'a> {
    /// Empty for any key.
    pub key: &'a str,
    /// Empty for `Equal`.
    pub operator: &'a str,
    pub value: &'a str,
    /// Empty for any effect.
    pub effect: &'a str,
}

impl Toleration<'_> {
    pub fn tolerates(&self, taint: Taint<'_>) -> bool {
        self.tolerates_by(taint, Feature::TaintTolerationComparisonOperators.enabled())
    }

    /// `compares`: numbers can be compared.
    fn tolerates_by(&self, taint: Taint<'_>, compares: bool) -> bool {
        if !self.effect.is_empty() && self.effect != taint.effect || !self.key.is_empty() && self.key != taint.key {
            return false;
        }
        match self.operator {
            "" | "Equal" => self.value == taint.value,
            "Exists" => true,
            "Lt" => compares && self.numbers(taint).is_some_and(|(of_taint, own)| of_taint < own),
            "Gt" => compares && self.numbers(taint).is_some_and(|(of_taint, own)| of_taint > own),
            _ => false,
        }
    }

    fn numbers(&self, taint: Taint<'_>) -> Option<(i64, i64)> {
        Some((whole_number(taint.value)?, whole_number(self.value)?))
    }
}

/// A number in its shortest form; `+1` and `01` are none.
fn whole_number(text: &str) -> Option<i64> {
    text.parse::<i64>().ok().filter(|number| number.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAINT: Taint<'_> = Taint { key: "k", value: "5", effect: "NoExecute" };

    fn tolerates(key: &str, operator: &str, value: &str, effect: &str) -> bool {
        Toleration { key, operator, value, effect }.tolerates(TAINT)
    }

    fn compares(operator: &str, value: &str) -> bool {
        Toleration { key: "k", operator, value, effect: "" }.tolerates_by(TAINT, true)
    }

    #[test]
    fn keys_effects_and_values_must_agree_where_they_are_given() {
        assert!(tolerates("", "Exists", "", ""));
        assert!(tolerates("k", "", "5", "NoExecute"));
        assert!(!tolerates("k", "Equal", "6", ""));
        assert!(!tolerates("k", "Exists", "", "NoSchedule"));
        assert!(!tolerates("l", "Exists", "", ""));
        assert!(!tolerates("k", "Lt", "6", ""), "the gate is shut");
    }

    #[test]
    fn numbers_are_compared_where_the_gate_is_open() {
        assert!(compares("Lt", "6"));
        assert!(!compares("Lt", "5"));
        assert!(compares("Gt", "-1"));
        assert!(!compares("Gt", "+1"));
        assert!(!compares("Gt", ""));
    }
}
