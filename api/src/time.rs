//! Times as objects carry them (upstream: `metav1.Time` and `metav1.MicroTime`).

use jiff::Timestamp;

/// RFC 3339 with seconds, as `metav1.Time` is written.
pub fn format_seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// RFC 3339 with six digits of a second, as `metav1.MicroTime` is written.
pub fn format_micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Parses RFC 3339 as Go's `time.Parse(time.RFC3339, …)` does: `T` and `Z` upper case, seconds and an offset given, a
/// fraction allowed.
pub fn parse(text: &str) -> Option<Timestamp> {
    let b = text.as_bytes();
    let digits = |range: std::ops::Range<usize>| b.get(range).is_some_and(|s| s.iter().all(u8::is_ascii_digit));
    let shape = digits(0..4)
        && b.get(4) == Some(&b'-')
        && digits(5..7)
        && b.get(7) == Some(&b'-')
        && digits(8..10)
        && b.get(10) == Some(&b'T')
        && digits(11..13)
        && b.get(13) == Some(&b':')
        && digits(14..16)
        && b.get(16) == Some(&b':')
        && digits(17..19);
    if !shape || &b[17..19] == b"60" {
        return None;
    }
    let rest = &text[19..];
    let rest = match rest.strip_prefix(['.', ',']) {
        Some(fraction) => {
            let end = fraction.find(|c: char| !c.is_ascii_digit())?;
            if end == 0 {
                return None;
            }
            &fraction[end..]
        }
        None => rest,
    };
    let zone = rest.as_bytes();
    let offset = rest == "Z"
        || (zone.len() == 6 && matches!(zone[0], b'+' | b'-') && zone[3] == b':' && rest[1..3].parse::<u8>().is_ok());
    if !offset {
        return None;
    }
    text.replacen(',', ".", 1).parse().ok()
}

/// The canonical text of a `metav1.Time`, or none if the text is no time.
pub fn canonical_seconds(text: &str) -> Option<String> {
    // By far most times already are canonical: they are not formatted again.
    let time = parse(text)?;
    if text.len() == 20 && text.ends_with('Z') { Some(text.to_owned()) } else { Some(format_seconds(time)) }
}

/// The canonical text of a `metav1.MicroTime`, or none if the text is no time.
pub fn canonical_micros(text: &str) -> Option<String> {
    parse(text).map(format_micros)
}

/// Formats a duration as Go's `time.Duration` prints it, such as `1m30s`.
pub fn format_duration(nanos: i64) -> String {
    if nanos == 0 {
        return "0s".to_owned();
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    let fraction = |whole: u64, part: u64, width: usize| {
        if part == 0 {
            whole.to_string()
        } else {
            format!("{whole}.{}", format!("{part:0width$}").trim_end_matches('0'))
        }
    };
    if n < 1_000 {
        return format!("{sign}{n}ns");
    }
    if n < 1_000_000 {
        return format!("{sign}{}µs", fraction(n / 1_000, n % 1_000, 3));
    }
    if n < 1_000_000_000 {
        return format!("{sign}{}ms", fraction(n / 1_000_000, n % 1_000_000, 6));
    }
    let seconds = n / 1_000_000_000;
    let mut out = sign.to_owned();
    if seconds >= 3600 {
        out.push_str(&format!("{}h", seconds / 3600));
    }
    if seconds >= 60 {
        out.push_str(&format!("{}m", seconds / 60 % 60));
    }
    out.push_str(&fraction(seconds % 60, n % 1_000_000_000, 9));
    out.push('s');
    out
}

/// Parses Go's duration text; the result is in nanoseconds.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number = &rest[..end];
        rest = &rest[end..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let scale: i128 = match &rest[..unit_end] {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        rest = &rest[unit_end..];
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && part.is_empty() || part.contains('.') || whole.len() > 20 {
            return None;
        }
        total += if whole.is_empty() { 0 } else { whole.parse::<i128>().ok()? } * scale;
        let part = &part[..part.len().min(15)];
        if !part.is_empty() {
            total += part.parse::<i128>().ok()? * scale / 10i128.pow(part.len() as u32);
        }
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// Whether this is a duration as Go writes it, such as `1h30m`; the error is Go's sentence.
pub fn check_duration(text: &str) -> Result<(), String> {
    let quoted = crate::field::go_quote(text);
    let invalid = || Err(format!("time: invalid duration {quoted}"));
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok(());
    }
    if rest.is_empty() {
        return invalid();
    }
    while !rest.is_empty() {
        let amount = rest.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(rest.len());
        let digits = &rest[..amount];
        if !digits.bytes().any(|b| b.is_ascii_digit()) || digits.matches('.').count() > 1 {
            return invalid();
        }
        rest = &rest[amount..];
        let unit = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
        match &rest[..unit] {
            "" => return Err(format!("time: missing unit in duration {quoted}")),
            "ns" | "us" | "µs" | "μs" | "ms" | "s" | "m" | "h" => {}
            other => return Err(format!("time: unknown unit {} in duration {quoted}", crate::field::go_quote(other))),
        }
        rest = &rest[unit..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_one_way() {
        assert_eq!(canonical_seconds("2001-02-03T04:05:06.789+01:00").unwrap(), "2001-02-03T03:05:06Z");
        assert_eq!(canonical_micros("2001-02-03T04:05:06Z").unwrap(), "2001-02-03T04:05:06.000000Z");
        for bad in ["2001-02-03", "2001-02-03t04:05:06Z", "2001-02-30T04:05:06Z", "2001-02-03T04:05Z", ""] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn durations_survive_the_round_trip() {
        for text in ["1h0m0s", "1m30s", "1.5s", "100ms", "2µs", "-5s", "0s"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(parse_duration("1"), None);
    }
}
