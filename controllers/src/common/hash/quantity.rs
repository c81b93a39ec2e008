//! A quantity as Go holds it in memory: the way it was parsed shows in the hash.

use std::fmt::Write;

/// Decimal digits that always fit 64 bits.
const DIGITS_MAX: i32 = 18;
/// The smallest scale of the integer form.
const NANO: i32 = -9;

pub(super) fn format(out: &mut String, text: Option<&str>) {
    let parsed = text.map(parse).unwrap_or_default();
    let _ = write!(
        out,
        "{{i:(resource.int64Amount){{value:(int64){} scale:(resource.Scale){}}} d:(resource.infDecAmount){{Dec:(*inf.Dec)",
        parsed.value, parsed.scale
    );
    match &parsed.decimal {
        None => out.push_str("<nil>"),
        Some((negative, unscaled)) => {
            // 64 bits a word, the lowest first.
            let (low, high) = (*unscaled as u64, (*unscaled >> 64) as u64);
            let words = if high == 0 { low.to_string() } else { format!("{low} {high}") };
            let _ = write!(
                out,
                "{{unscaled:(big.Int){{neg:(bool){negative} abs:(big.nat)[{words}]}} scale:(inf.Scale){}}}",
                -NANO
            );
        }
    }
    let kept = if parsed.keeps_text { text.unwrap_or_default() } else { "" };
    let _ = write!(out, "}} s:(string){kept} Format:(resource.Format){}}}", parsed.format);
}

#[derive(Default)]
struct Parsed {
    value: i64,
    scale: i32,
    /// Sign and billionths, where the integer form would lose digits.
    decimal: Option<(bool, u128)>,
    /// Whether the text is kept because it looks canonical.
    keeps_text: bool,
    format: &'static str,
}

fn parse(text: &str) -> Parsed {
    if text == "0" {
        return Parsed { keeps_text: true, format: "DecimalSI", ..Parsed::default() };
    }
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = whole.trim_start_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    let Some((format, exponent)) = suffix_of(suffix) else { return Parsed::default() };
    let shifted = format!("{whole}{fraction}");
    let length = shifted.len() as i32;
    let (precision, mantissa, scale) = match format {
        "BinarySI" if fraction.is_empty() => (15 - length - exponent * 3 / 10 - 1, 1i64 << exponent, 0),
        "BinarySI" => (-1, 1, 0),
        _ => (DIGITS_MAX - length, 1, exponent),
    };
    let scale = scale - fraction.len() as i32;
    if precision >= 0
        && scale >= NANO
        && let Ok(value) = shifted.parse::<i64>()
        && let Some(result) = value.checked_mul(mantissa)
    {
        let keeps_text = if format == "BinarySI" {
            value & 7 != 0
        } else {
            scale % 3 == 0 && !shifted.ends_with("000") && !shifted.starts_with('0')
        };
        let value = if negative { -result } else { result };
        return Parsed { value, scale, keeps_text, format, decimal: None };
    }
    let decimal = billionths(&shifted, fraction.len() as i32, format, exponent);
    Parsed { decimal: decimal.map(|unscaled| (negative, unscaled)), format, ..Parsed::default() }
}

/// The number in billionths, rounded up, and no more than 63 bits of whole binary units.
fn billionths(digits: &str, decimals: i32, format: &str, exponent: i32) -> Option<u128> {
    let mut unscaled: u128 = digits.parse().ok()?;
    let mut scale = decimals;
    if format == "BinarySI" {
        unscaled = unscaled.checked_mul(1u128.checked_shl(exponent as u32)?)?;
    } else {
        scale -= exponent;
    }
    let shift = -NANO - scale;
    let unscaled = if shift >= 0 {
        unscaled.checked_mul(10u128.checked_pow(shift as u32)?)?
    } else {
        unscaled.div_ceil(10u128.checked_pow(shift.unsigned_abs())?)
    };
    let most = i64::MAX as u128 * 1_000_000_000;
    Some(if format == "BinarySI" { unscaled.min(most) } else { unscaled })
}

fn suffix_of(suffix: &str) -> Option<(&'static str, i32)> {
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    const DECIMAL: [(&str, i32); 10] =
        [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
    if let Some(index) = BINARY.iter().position(|known| *known == suffix) {
        return Some(("BinarySI", 10 * (index as i32 + 1)));
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(known, _)| *known == suffix) {
        return Some(("DecimalSI", *exponent));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    Some(("DecimalExponent", exponent))
}
