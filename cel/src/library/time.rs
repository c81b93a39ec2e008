//! Times and durations (upstream: cel-go `common/types/timestamp.go` and `duration.go`).

use super::Found;
use crate::eval::Error;
use crate::value::Value;
use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};

const SECOND: i64 = 1_000_000_000;

pub(crate) fn parse_duration(text: &str) -> Option<i64> {
    coxswain_api::time::parse_duration(text)
}

/// RFC 3339, in the years that CEL knows.
pub(crate) fn parse_timestamp(text: &str) -> Option<Timestamp> {
    coxswain_api::time::parse(text)
}

pub(crate) fn duration_overflow() -> Error {
    Error::new("duration overflow")
}

pub(super) fn shifted(time: Timestamp, nanos: i64) -> Result<Timestamp, Error> {
    let by = jiff::SignedDuration::from_nanos(nanos);
    time.checked_add(by).map_err(|_| Error::new("timestamp overflow"))
}

/// A duration in seconds, with as many digits as it takes.
pub(crate) fn seconds_text(nanos: i64) -> String {
    let (sign, nanos) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let (whole, rest) = (nanos / SECOND as u64, nanos % SECOND as u64);
    let fraction = format!("{rest:09}");
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { format!("{sign}{whole}s") } else { format!("{sign}{whole}.{fraction}s") }
}

/// A duration as Go writes it.
pub(crate) fn duration_text(nanos: i64) -> String {
    coxswain_api::time::format_duration(nanos)
}

fn zone(rest: &[Value<'_>]) -> Result<TimeZone, Error> {
    let name = match rest {
        [] => return Ok(TimeZone::UTC),
        [Value::Text(name)] => &**name,
        _ => return Err(Error::no_overload()),
    };
    let unknown = || Error::new(format!("unknown time zone {name}"));
    if let Some((hours, minutes)) = name.split_once(':') {
        let sign = if hours.starts_with('-') { -1 } else { 1 };
        let hours: i32 = hours.trim_start_matches(['+', '-']).parse().map_err(|_| unknown())?;
        let minutes: i32 = minutes.parse().map_err(|_| unknown())?;
        let offset = Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).map_err(|_| unknown())?;
        return Ok(TimeZone::fixed(offset));
    }
    match name {
        "" | "UTC" => Ok(TimeZone::UTC),
        _ => TimeZone::get(name).map_err(|_| unknown()),
    }
}

pub(super) fn of_timestamp<'a>(name: &str, time: Timestamp, rest: &[Value<'a>]) -> Found<'a> {
    let time = time.to_zoned(zone(rest)?);
    Ok(Value::Int(match name {
        "getFullYear" => time.year().into(),
        "getMonth" => i64::from(time.month()) - 1,
        "getDayOfYear" => i64::from(time.day_of_year()) - 1,
        "getDayOfMonth" => i64::from(time.day()) - 1,
        "getDate" => time.day().into(),
        "getDayOfWeek" => time.weekday().to_sunday_zero_offset().into(),
        "getHours" => time.hour().into(),
        "getMinutes" => time.minute().into(),
        "getSeconds" => time.second().into(),
        "getMilliseconds" => time.millisecond().into(),
        _ => return Err(Error::no_overload()),
    }))
}

pub(super) fn of_duration<'a>(name: &str, nanos: i64) -> Found<'a> {
    Ok(Value::Int(match name {
        "getHours" => nanos / (3600 * SECOND),
        "getMinutes" => nanos / (60 * SECOND),
        "getSeconds" => nanos / SECOND,
        "getMilliseconds" => nanos / 1_000_000,
        _ => return Err(Error::no_overload()),
    }))
}
