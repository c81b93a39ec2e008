//! Whether a text is a cron schedule, and what is wrong with it in the words of upstream's parser
//! (`github.com/robfig/cron/v3`, `ParseStandard`).

use coxswain_api::field::go_quote;
use jiff::tz::TimeZone;

struct Bounds {
    low: u64,
    high: u64,
    names: &'static [&'static str],
}

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Minute, hour, day of the month, month, day of the week. Names count from `low`.
const FIELDS: [Bounds; 5] = [
    Bounds { low: 0, high: 59, names: &[] },
    Bounds { low: 0, high: 23, names: &[] },
    Bounds { low: 1, high: 31, names: &[] },
    Bounds { low: 1, high: 12, names: MONTHS },
    Bounds { low: 0, high: 6, names: DAYS },
];

pub fn check(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("empty spec string".into());
    }
    let mut text = text;
    if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") {
        let (zone, rest) = text.split_once(' ').unwrap_or((text, ""));
        let zone = zone.split_once('=').map_or("", |(_, zone)| zone);
        if let Err(why) = time_zone(zone) {
            return Err(format!("provided bad location {zone}: {why}"));
        }
        text = rest.trim();
    }
    if text.starts_with('@') {
        return descriptor(text);
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    for (field, bounds) in fields.iter().zip(&FIELDS) {
        for part in field.split(',').filter(|part| !part.is_empty()) {
            range(part, bounds)?;
        }
    }
    Ok(())
}

/// A name of a time zone that the system knows.
pub fn time_zone(name: &str) -> Result<(), String> {
    if matches!(name, "" | "UTC" | "Local") || TimeZone::get(name).is_ok() {
        return Ok(());
    }
    Err(format!("unknown time zone {name}"))
}

fn range(part: &str, bounds: &Bounds) -> Result<(), String> {
    let halves: Vec<&str> = part.split('/').collect();
    let ends: Vec<&str> = halves[0].split('-').collect();
    let (start, mut end) = if matches!(ends[0], "*" | "?") {
        (bounds.low, bounds.high)
    } else {
        let start = number_or_name(ends[0], bounds)?;
        match ends.len() {
            1 => (start, start),
            2 => (start, number_or_name(ends[1], bounds)?),
            _ => return Err(format!("too many hyphens: {part}")),
        }
    };
    let step = match halves.len() {
        1 => 1,
        2 => {
            let step = number(halves[1])?;
            if ends.len() == 1 {
                end = bounds.high;
            }
            step
        }
        _ => return Err(format!("too many slashes: {part}")),
    };
    if start < bounds.low {
        return Err(format!("beginning of range ({start}) below minimum ({}): {part}", bounds.low));
    }
    if end > bounds.high {
        return Err(format!("end of range ({end}) above maximum ({}): {part}", bounds.high));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {part}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    Ok(())
}

fn number_or_name(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let lower = text.to_lowercase();
    match bounds.names.iter().position(|name| *name == lower) {
        Some(at) => Ok(bounds.low + at as u64),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u64, String> {
    let parsed: i64 = text.parse().map_err(|_| {
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        let why = if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
            "value out of range"
        } else {
            "invalid syntax"
        };
        format!("failed to parse int from {text}: strconv.Atoi: parsing {}: {why}", go_quote(text))
    })?;
    u64::try_from(parsed).map_err(|_| format!("negative number ({parsed}) not allowed: {text}"))
}

fn descriptor(text: &str) -> Result<(), String> {
    const KNOWN: &[&str] = &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    if KNOWN.contains(&text) {
        return Ok(());
    }
    match text.strip_prefix("@every ") {
        None => Err(format!("unrecognized descriptor: {text}")),
        Some(length) => {
            coxswain_api::time::check_duration(length).map_err(|why| format!("failed to parse duration {text}: {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_known() {
        for good in
            ["*/5 * * * *", "0 0 * JAN-MAR MON", "@daily", "@every 1h30m", "0 0,12 1-5/2 * ?", "TZ=UTC 0 0 * * *"]
        {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, why) in [
            ("nope", "expected exactly 5 fields, found 1: [nope]"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("@nope", "unrecognized descriptor: @nope"),
            ("@every x", "failed to parse duration @every x: time: invalid duration \"x\""),
            ("@every 1x", "failed to parse duration @every 1x: time: unknown unit \"x\" in duration \"1x\""),
        ] {
            assert_eq!(check(text), Err(why.into()), "{text}");
        }
    }
}
