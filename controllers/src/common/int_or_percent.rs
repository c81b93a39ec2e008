//! `IntOrString` values that are a number or a percentage of a total.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The number, or the percentage of `total` rounded up or down; `None` if it is neither.
pub fn resolve(value: &IntOrString, total: i32, round_up: bool) -> Option<i32> {
    match value {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%')?.parse().ok()?;
            let product = percent * i64::from(total);
            let result = if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) };
            i32::try_from(result).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_as_asked() {
        let quarter = IntOrString::String("25%".to_owned());
        assert_eq!(resolve(&quarter, 3, true), Some(1));
        assert_eq!(resolve(&quarter, 3, false), Some(0));
        assert_eq!(resolve(&IntOrString::Int(2), 3, false), Some(2));
        assert_eq!(resolve(&IntOrString::String("x".to_owned()), 3, false), None);
    }
}
