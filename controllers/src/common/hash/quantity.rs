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
        "{{i:(resource.int64Amount){{value:(int64){} scale:(resource.Scale){}}} d:(resource.infDecAmount)\
         {{Dec:(*inf.Dec)<nil>}} s:(string){} Format:(resource.Format){}}}",
        parsed.value,
        parsed.scale,
        text.unwrap_or_default(),
        parsed.format
    );
}

#[derive(Default)]
struct Parsed {
    value: i64,
    scale: i32,
    format: &'static str,
}

/// The integer form. A quantity too precise for it, which upstream keeps as a big decimal, does not occur in canonical
/// text of ordinary size; its digits are then taken as zero.
fn parse(text: &str) -> Parsed {
    if text == "0" {
        return Parsed::default();
    }
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = whole.trim_start_matches('0');
    let Some((format, exponent)) = suffix_of(suffix) else { return Parsed::default() };
    let value = format!("{whole}{fraction}").parse::<i64>().unwrap_or(0);
    let signed = |value: i64| if negative { -value } else { value };
    if format == "BinarySI" {
        let value = value.checked_mul(1i64.checked_shl(exponent as u32).unwrap_or(0)).unwrap_or(0);
        return Parsed { value: signed(value), scale: 0, format };
    }
    let scale = exponent - fraction.len() as i32;
    if (whole.len() + fraction.len()) as i32 > DIGITS_MAX || scale < NANO {
        return Parsed { value: 0, scale: 0, format };
    }
    Parsed { value: signed(value), scale, format }
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
