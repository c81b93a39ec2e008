//! Times in the words of Go's `time.Parse`: what it accepts, and how it refuses.

use jiff::Timestamp;
use jiff::civil;

use crate::field::go_quote;

const RFC3339: &str = "2006-01-02T15:04:05Z07:00";
const RFC3339_MICRO: &str = "2006-01-02T15:04:05.000000Z07:00";

/// The canonical text of a `metav1.Time`: none for Go's zero time, which encodes as null.
pub fn canonical_time(text: &str) -> Result<Option<String>, String> {
    if is_canonical(text.as_bytes()) {
        return Ok(if text == "0001-01-01T00:00:00Z" { None } else { Some(text.to_owned()) });
    }
    let time = parse(text, false)?;
    let canonical = crate::time::format_seconds(time);
    Ok(if canonical == "0001-01-01T00:00:00Z" && time.subsec_nanosecond() == 0 { None } else { Some(canonical) })
}

/// The canonical text of a `metav1.MicroTime`: none for Go's zero time.
pub fn canonical_micro_time(text: &str) -> Result<Option<String>, String> {
    let canonical = crate::time::format_micros(parse(text, true)?);
    Ok(if canonical == "0001-01-01T00:00:00.000000Z" { None } else { Some(canonical) })
}

/// Whether the text is `YYYY-MM-DDTHH:MM:SSZ` with every part in range for every month.
fn is_canonical(b: &[u8]) -> bool {
    let digits = |i: usize| b[i].is_ascii_digit() && b[i + 1].is_ascii_digit();
    let two = |i: usize| (b[i] - b'0') * 10 + (b[i + 1] - b'0');
    b.len() == 20
        && digits(0)
        && digits(2)
        && b[4] == b'-'
        && digits(5)
        && b[7] == b'-'
        && digits(8)
        && b[10] == b'T'
        && digits(11)
        && b[13] == b':'
        && digits(14)
        && b[16] == b':'
        && digits(17)
        && b[19] == b'Z'
        && (1..=12).contains(&two(5))
        && (1..=28).contains(&two(8))
        && two(11) < 24
        && two(14) < 60
        && two(17) < 60
}

/// Parses RFC 3339, with exactly six digits of a second if `micro`.
pub fn parse(text: &str, micro: bool) -> Result<Timestamp, String> {
    let layout = if micro { RFC3339_MICRO } else { RFC3339 };
    let refuse = |rest: &str, element: &str| {
        let (text, layout) = (go_quote(text), go_quote(layout));
        Err(format!("parsing time {text} as {layout}: cannot parse {} as {}", go_quote(rest), go_quote(element)))
    };
    let out_of_range = |what: &str| Err(format!("parsing time {}: {what} out of range", go_quote(text)));
    let b = text.as_bytes();
    let digit = |i: usize| b.get(i).is_some_and(u8::is_ascii_digit);
    let value = |i: usize| i32::from(b[i] - b'0');
    // Everything accepted so far is ASCII, so that `at` is always a character boundary.
    let mut at = 0;
    if !(digit(0) && digit(1) && digit(2) && digit(3)) {
        return refuse(text, "2006");
    }
    let year = value(0) * 1000 + value(1) * 100 + value(2) * 10 + value(3);
    at += 4;
    let mut parts = [0i32; 5];
    let elements = [("-", "01"), ("-", "02"), ("T", "15"), (":", "04"), (":", "05")];
    for (i, (before, element)) in elements.iter().enumerate() {
        if b.get(at) != before.as_bytes().first() {
            return refuse(&text[at..], before);
        }
        at += 1;
        if digit(at) && digit(at + 1) {
            parts[i] = value(at) * 10 + value(at + 1);
            at += 2;
        } else if digit(at) && *element == "15" {
            // Go takes an hour of one digit.
            parts[i] = value(at);
            at += 1;
        } else {
            return refuse(&text[at..], element);
        }
        match i {
            0 if !(1..=12).contains(&parts[0]) => return out_of_range("month"),
            2 if parts[2] > 23 => return out_of_range("hour"),
            3 if parts[3] > 59 => return out_of_range("minute"),
            4 if parts[4] > 59 => return out_of_range("second"),
            _ => {}
        }
    }
    let mut nanos = 0i32;
    if micro {
        if b.get(at) != Some(&b'.') || !(1..=6).all(|i| digit(at + i)) {
            return refuse(&text[at..], ".000000");
        }
        nanos = (1..=6).fold(0, |n, i| n * 10 + value(at + i)) * 1000;
        at += 7;
    } else if matches!(b.get(at), Some(b'.' | b',')) && digit(at + 1) {
        let end = (at + 1..b.len()).find(|&i| !b[i].is_ascii_digit()).unwrap_or(b.len());
        for i in 0..9 {
            nanos = nanos * 10 + if at + 1 + i < end { value(at + 1 + i) } else { 0 };
        }
        at = end;
    }
    let mut offset_seconds = 0i64;
    if b.get(at) == Some(&b'Z') {
        at += 1;
    } else {
        let shape = b.len() >= at + 6
            && matches!(b[at], b'+' | b'-')
            && digit(at + 1)
            && digit(at + 2)
            && b[at + 3] == b':'
            && digit(at + 4)
            && digit(at + 5);
        if !shape {
            return refuse(&text[at..], "Z07:00");
        }
        let (hours, minutes) = (value(at + 1) * 10 + value(at + 2), value(at + 4) * 10 + value(at + 5));
        if hours > 24 {
            return out_of_range("time zone offset hour");
        }
        if minutes > 60 {
            return out_of_range("time zone offset minute");
        }
        offset_seconds = i64::from(hours * 3600 + minutes * 60) * if b[at] == b'-' { -1 } else { 1 };
        at += 6;
    }
    if at < b.len() {
        return Err(format!("parsing time {}: extra text: {}", go_quote(text), go_quote(&text[at..])));
    }
    let [month, day, hour, minute, second] = parts.map(|p| p as i8);
    let Ok(time) = civil::DateTime::new(year as i16, month, day, hour, minute, second, nanos) else {
        return out_of_range("day");
    };
    // An offset can lead out of the range of representable times only at the very ends of the calendar.
    time.to_zoned(jiff::tz::TimeZone::UTC)
        .ok()
        .and_then(|z| z.timestamp().checked_sub(jiff::SignedDuration::from_secs(offset_seconds)).ok())
        .map_or_else(|| out_of_range("year"), Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_refused_in_the_words_of_go() {
        let refused = |text, micro| parse(text, micro).unwrap_err();
        assert_eq!(
            refused("yesterday", false),
            r#"parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006""#
        );
        assert_eq!(
            refused("2001-01-01", true),
            r#"parsing time "2001-01-01" as "2006-01-02T15:04:05.000000Z07:00": cannot parse "" as "T""#
        );
        assert_eq!(
            refused("2001-13-01T00:00:00Z", false),
            r#"parsing time "2001-13-01T00:00:00Z": month out of range"#
        );
        assert_eq!(refused("2001-02-30T00:00:00Z", false), r#"parsing time "2001-02-30T00:00:00Z": day out of range"#);
        assert_eq!(refused("2001-02-03T00:00:00Zx", false), r#"parsing time "2001-02-03T00:00:00Zx": extra text: "x""#);
    }

    #[test]
    fn times_become_canonical() {
        let seconds = |text| canonical_time(text).unwrap();
        assert_eq!(seconds("2001-02-03T04:05:06.789+01:00").as_deref(), Some("2001-02-03T03:05:06Z"));
        assert_eq!(seconds("2001-01-31T04:05:06Z").as_deref(), Some("2001-01-31T04:05:06Z"));
        assert_eq!(seconds("0001-01-01T00:00:00Z"), None);
        let micros = canonical_micro_time("2001-02-03T04:05:06.120000Z").unwrap();
        assert_eq!(micros.as_deref(), Some("2001-02-03T04:05:06.120000Z"));
    }
}
