//! Quantities such as `100m`, `1.5Gi` and `12e6` (upstream: `apimachinery/pkg/api/resource`).
//!
//! A quantity is an integer times a power of ten, with the notation it was written in. Upstream's rules are kept where
//! they can be seen from outside: the canonical text, rounding up to nano, the cap of binary quantities at 2^63-1, and
//! that a text which upstream finds cheap to keep is printed as it was written (`1.001` stays, `1500m` becomes `1500m`,
//! `0.5` becomes `500m`).

use std::cmp::Ordering;
use std::fmt;

/// The notation of a quantity, which decides how it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    DecimalSi,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// `mantissa × 10^scale`. Arithmetic that leaves 127 bits saturates; upstream's own limit for what it computes fast is 63.
#[derive(Clone, Debug)]
pub struct Quantity {
    mantissa: i128,
    scale: i32,
    format: Format,
    /// The text as it was written, where upstream prints just that.
    text: Option<Box<str>>,
}

const NANO: i32 = -9;

fn pow10(n: u32) -> Option<i128> {
    10i128.checked_pow(n)
}

impl Default for Quantity {
    fn default() -> Self {
        Self::new(0, Format::DecimalSi)
    }
}

impl Quantity {
    pub fn new(value: i64, format: Format) -> Self {
        Self { mantissa: value.into(), scale: 0, format, text: None }
    }

    pub fn milli(value: i64, format: Format) -> Self {
        Self { mantissa: value.into(), scale: -3, format, text: None }
    }

    /// Parses a quantity as upstream's `ParseQuantity`.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return Err(ParseError::Format);
        }
        let parts = Parts::split(text)?;
        let (base_two, exponent, format) = interpret_suffix(parts.suffix).ok_or(ParseError::Suffix)?;

        let digits = (parts.integer.len() + parts.fraction.len()) as i32;
        let keeps_text = match format {
            // The exact conditions under which upstream keeps the text it parsed.
            Format::BinarySi => {
                let small = parts.fraction.is_empty() && 15 - parts.integer.len() as i32 - exponent * 3 / 10 > 0;
                let odd = small && parts.integer.parse::<i64>().map_err(|_| ParseError::Numeric)? & 7 != 0;
                odd && exponent % 10 == 0
            }
            _ => {
                let scale = exponent.saturating_sub(parts.fraction.len() as i32);
                let first = parts.integer.bytes().chain(parts.fraction.bytes()).next();
                let last_three = format!("{}{}", parts.integer, parts.fraction);
                digits <= 18 && scale >= NANO && scale % 3 == 0 && !last_three.ends_with("000") && first != Some(b'0')
            }
        };

        let (mut mantissa, mut scale) = decimal(parts.integer, parts.fraction);
        if base_two {
            match mantissa.checked_shl(exponent as u32).filter(|m| m >> exponent == mantissa) {
                Some(shifted) => mantissa = shifted,
                None => (mantissa, scale) = (i64::MAX.into(), 0),
            }
        } else {
            scale = scale.saturating_add(exponent);
        }
        let mut quantity = Self { mantissa, scale, format, text: None };
        quantity.round_up(NANO);
        if format == Format::BinarySi {
            if quantity.cmp(&Self::new(i64::MAX, format)) == Ordering::Greater {
                (quantity.mantissa, quantity.scale) = (i64::MAX.into(), 0);
            }
            if quantity.mantissa > 0 && quantity.cmp(&Self::new(1, format)) == Ordering::Less {
                quantity.format = Format::DecimalSi;
            }
        }
        if parts.negative {
            quantity.mantissa = -quantity.mantissa;
        }
        if keeps_text || text == "0" {
            quantity.text = Some(text.into());
        }
        Ok(quantity)
    }

    /// The canonical text of a quantity given as text, as an encoder writes it.
    pub fn canonical(text: &str) -> Result<String, ParseError> {
        Ok(Self::parse(text.trim())?.to_string())
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_zero(&self) -> bool {
        self.mantissa == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.mantissa.signum() as i32
    }

    /// The value in whole units, fractions rounded away from zero.
    pub fn value(&self) -> i64 {
        self.scaled_value(0)
    }

    /// The value in thousandths, rounded away from zero.
    pub fn milli_value(&self) -> i64 {
        self.scaled_value(-3)
    }

    /// The value in units of `10^scale`, rounded away from zero, held within 64 bits.
    pub fn scaled_value(&self, scale: i32) -> i64 {
        let value = rescale(self.mantissa, self.scale, scale).0;
        value.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }

    /// The value as a floating point number.
    pub fn as_f64(&self) -> f64 {
        self.mantissa as f64 * 10f64.powi(self.scale)
    }

    /// Rounds away from zero to multiples of `10^scale`; whether nothing was lost.
    pub fn round_up(&mut self, scale: i32) -> bool {
        if self.scale >= scale {
            return true;
        }
        let (mantissa, exact) = rescale(self.mantissa, self.scale, scale);
        self.mantissa = mantissa;
        self.scale = scale;
        self.text = None;
        exact
    }

    pub fn add(&mut self, other: &Quantity) {
        self.text = None;
        if self.is_zero() {
            self.format = other.format;
        }
        self.combine(other, i128::saturating_add);
    }

    pub fn sub(&mut self, other: &Quantity) {
        self.text = None;
        if self.is_zero() {
            self.format = other.format;
        }
        self.combine(other, i128::saturating_sub);
    }

    pub fn mul(&mut self, factor: i64) {
        self.text = None;
        self.mantissa = self.mantissa.saturating_mul(factor.into());
    }

    pub fn neg(&mut self) {
        self.text = None;
        self.mantissa = self.mantissa.saturating_neg();
    }

    fn combine(&mut self, other: &Quantity, op: fn(i128, i128) -> i128) {
        if self.is_zero() {
            self.scale = other.scale;
        }
        if other.is_zero() {
            return;
        }
        let scale = self.scale.min(other.scale);
        let (a, b) = (rescale(self.mantissa, self.scale, scale).0, rescale(other.mantissa, other.scale, scale).0);
        self.mantissa = op(a, b);
        self.scale = scale;
    }
}

/// `mantissa × 10^from` in units of `10^to`, rounded away from zero; whether it was exact.
fn rescale(mantissa: i128, from: i32, to: i32) -> (i128, bool) {
    let shift = from.saturating_sub(to);
    if mantissa == 0 || shift == 0 {
        return (mantissa, true);
    }
    let limit = if mantissa < 0 { i128::MIN + 1 } else { i128::MAX };
    match pow10(shift.unsigned_abs()) {
        Some(power) if shift > 0 => match mantissa.checked_mul(power) {
            Some(value) => (value, true),
            None => (limit, false),
        },
        None if shift > 0 => (limit, false),
        Some(power) => {
            let (quotient, rest) = (mantissa / power, mantissa % power);
            if rest == 0 { (quotient, true) } else { (quotient + mantissa.signum(), false) }
        }
        None => (mantissa.signum(), false),
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        let signs = self.mantissa.signum().cmp(&other.mantissa.signum());
        if signs != Ordering::Equal || self.is_zero() {
            return signs;
        }
        let shift = i64::from(self.scale) - i64::from(other.scale);
        let power = u32::try_from(shift.unsigned_abs()).ok().and_then(pow10);
        let (larger, smaller, swap) =
            if shift >= 0 { (self.mantissa, other.mantissa, false) } else { (other.mantissa, self.mantissa, true) };
        let order = match power.and_then(|p| larger.checked_mul(p)) {
            Some(scaled) => scaled.cmp(&smaller),
            // Scaled up it leaves 127 bits, which the other does not.
            None => larger.signum().cmp(&0),
        };
        if swap { order.reverse() } else { order }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = &self.text {
            return f.write_str(text);
        }
        if self.is_zero() {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi {
            let (whole, exact) = rescale(self.mantissa, self.scale, 0);
            // Below 1Ki, and where a fraction would be lost, the decimal notation is the canonical one.
            if exact && !(-1024 < whole && whole < 1024) {
                let (mut amount, mut times) = (whole, 0);
                while amount % 1024 == 0 {
                    amount /= 1024;
                    times += 1;
                }
                return write!(f, "{amount}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].get(times).unwrap_or(&""));
            }
        }
        let (mut amount, mut exponent) = (self.mantissa, self.scale);
        while amount % 10 == 0 {
            amount /= 10;
            exponent += 1;
        }
        while exponent % 3 != 0 {
            amount = amount.saturating_mul(10);
            exponent -= 1;
        }
        match self.format {
            Format::DecimalExponent if exponent == 0 => write!(f, "{amount}"),
            Format::DecimalExponent => write!(f, "{amount}e{exponent}"),
            _ => write!(f, "{amount}{}", decimal_suffix(exponent)),
        }
    }
}

/// Upstream prints no suffix at all where there is none for an exponent.
fn decimal_suffix(exponent: i32) -> &'static str {
    match exponent {
        -9 => "n",
        -6 => "u",
        -3 => "m",
        3 => "k",
        6 => "M",
        9 => "G",
        12 => "T",
        15 => "P",
        18 => "E",
        _ => "",
    }
}

/// Whether the base is two, the exponent, and the format of a suffix.
fn interpret_suffix(suffix: &str) -> Option<(bool, i32, Format)> {
    let si = |e| Some((false, e, Format::DecimalSi));
    let binary = |e| Some((true, e, Format::BinarySi));
    match suffix {
        "" => si(0),
        "n" => si(-9),
        "u" => si(-6),
        "m" => si(-3),
        "k" => si(3),
        "M" => si(6),
        "G" => si(9),
        "T" => si(12),
        "P" => si(15),
        "E" => si(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent: i64 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            Some((false, exponent as i32, Format::DecimalExponent))
        }
    }
}

/// The parts of a quantity's text, without leading zeros.
struct Parts<'a> {
    negative: bool,
    integer: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

impl<'a> Parts<'a> {
    fn split(text: &'a str) -> Result<Self, ParseError> {
        let negative = text.starts_with('-');
        let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
        let number = unsigned.trim_start_matches('0');
        let (integer, rest) = number.split_at(leading_digits(number));
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(after) => after.split_at(leading_digits(after)),
            None => ("", rest),
        };
        let letters = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
        let signed = letters.strip_prefix(['-', '+']).unwrap_or(letters);
        if leading_digits(signed) != signed.len() {
            return Err(ParseError::Format);
        }
        // A text without a single digit, such as `Gi` or `.`, has no number: upstream's decimal parser refuses it.
        if !unsigned.is_empty() && !unsigned.starts_with(|c: char| c.is_ascii_digit()) && fraction.is_empty() {
            return Err(ParseError::Numeric);
        }
        let integer = if integer.is_empty() { "0" } else { integer };
        Ok(Self { negative, integer, fraction, suffix })
    }
}

fn leading_digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// Digits as a mantissa and a scale. What does not fit 38 digits is rounded up.
fn decimal(integer: &str, fraction: &str) -> (i128, i32) {
    let mut mantissa: i128 = 0;
    let mut scale: i32 = -(fraction.len() as i32);
    let total = integer.len() + fraction.len();
    for (i, digit) in integer.bytes().chain(fraction.bytes()).enumerate() {
        match mantissa.checked_mul(10).and_then(|m| m.checked_add((digit - b'0').into())) {
            Some(next) => mantissa = next,
            None => {
                scale = scale.saturating_add((total - i) as i32);
                mantissa += 1;
                break;
            }
        }
    }
    (mantissa, scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(s: &str) -> String {
        Quantity::parse(s).map(|q| q.to_string()).unwrap_or_else(|e| format!("!{e:?}"))
    }

    #[test]
    fn canonical_texts_are_upstreams() {
        for (given, want) in [
            ("0", "0"),
            ("0Gi", "0"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("0.1", "100m"),
            ("1.5", "1500m"),
            ("1.001", "1.001"),
            ("1024", "1024"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("10e3", "10e3"),
            ("1000e3", "1e6"),
            ("1E", "1E"),
            ("123456789123456789Gi", "9223372036854775807"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("-0.1n", "-1n"),
            ("1.23456789012", "1234567891n"),
            ("+5", "+5"),
            ("-5", "-5"),
            ("2000000", "2M"),
            ("100Mi", "100Mi"),
            ("1.0Gi", "1Gi"),
            ("1Zi", "!Format"),
            ("1mm", "!Suffix"),
            ("Gi", "!Numeric"),
            ("", "!Format"),
            ("1 ", "!Format"),
        ] {
            assert_eq!(text(given), want, "{given}");
        }
    }

    #[test]
    fn values_round_up_and_compare_across_notations() {
        let q = |s| Quantity::parse(s).unwrap();
        assert_eq!(q("1500m").value(), 2);
        assert_eq!(q("1500m").milli_value(), 1500);
        assert_eq!(q("1Gi").value(), 1 << 30);
        assert_eq!(q("1k"), q("1000"));
        assert!(q("1Ki") > q("1k"));
        assert!(q("-1") < q("1n"));
        assert!(q("1e100") > q("9E"));
        let mut sum = q("1Gi");
        sum.add(&q("500m"));
        assert_eq!(sum.to_string(), "1073741824500m");
        let mut rest = q("2");
        rest.sub(&q("500m"));
        assert_eq!(rest.to_string(), "1500m");
    }
}
