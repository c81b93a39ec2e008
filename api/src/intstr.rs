//! Values that are a number or a text, mostly a percentage (upstream: `apimachinery/pkg/util/intstr`).

use serde_json::Value;

/// The number that an int-or-percentage stands for, out of `total`. `None` if it is neither.
pub fn scaled(value: &Value, total: i64, round_up: bool) -> Option<i64> {
    match value {
        Value::Number(n) => n.as_i64(),
        Value::String(text) => {
            let percent = percentage(text)?;
            // Upstream computes in floating point; both agree for every total that fits 32 bits.
            let product = i128::from(percent) * i128::from(total);
            let quotient = if round_up { -((-product).div_euclid(100)) } else { product.div_euclid(100) };
            i64::try_from(quotient).ok()
        }
        _ => None,
    }
}

/// The number before the `%`.
pub fn percentage(text: &str) -> Option<i64> {
    text.strip_suffix('%')?.parse().ok()
}

/// The number, or for a text the number it spells, else 0 (upstream: `IntOrString.IntValue`).
pub fn int_value(value: &Value) -> i64 {
    match value {
        Value::Number(n) => n.as_i64().unwrap_or_default(),
        Value::String(text) => text.parse::<i32>().map(i64::from).unwrap_or_default(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn percentages_round_the_way_asked() {
        assert_eq!(scaled(&json!("25%"), 10, true), Some(3));
        assert_eq!(scaled(&json!("25%"), 10, false), Some(2));
        assert_eq!(scaled(&json!(7), 10, false), Some(7));
        assert_eq!(scaled(&json!("x"), 10, false), None);
    }
}
