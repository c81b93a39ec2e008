//! Cron schedules: five fields, or `@hourly` and its like. If both the day of the month and the day of the week are
//! restricted, either suffices.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

pub(super) struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether the field began with a star.
    any_day: bool,
    any_weekday: bool,
    zone: TimeZone,
    /// `@every`: a fixed distance in seconds instead of fields.
    every: Option<i64>,
}

/// Looked for no further than this: some schedules, such as the 30th of February, never come.
const YEARS_MAX: i16 = 5;

impl Schedule {
    pub(super) fn parse(text: &str, zone: TimeZone) -> Option<Self> {
        let text = text.trim();
        if let Some(duration) = text.strip_prefix("@every ") {
            let seconds = parse_duration(duration.trim())?.max(1);
            return Some(Self { every: Some(seconds), ..Self::empty(zone) });
        }
        let text = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            text => text,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields.as_slice() else { return None };
        let star = |field: &str| field.split(',').any(|part| part.starts_with(['*', '?']));
        Some(Self {
            minutes: parse_field(minutes, 0, 59, &[])?,
            hours: parse_field(hours, 0, 23, &[])?,
            days: parse_field(days, 1, 31, &[])?,
            months: parse_field(months, 1, 12, &MONTHS)?,
            weekdays: parse_field(weekdays, 0, 6, &WEEKDAYS)?,
            any_day: star(days),
            any_weekday: star(weekdays),
            zone,
            every: None,
        })
    }

    fn empty(zone: TimeZone) -> Self {
        Self {
            minutes: 0,
            hours: 0,
            days: 0,
            months: 0,
            weekdays: 0,
            any_day: false,
            any_weekday: false,
            zone,
            every: None,
        }
    }

    /// The first time after `time`.
    pub(super) fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        if let Some(seconds) = self.every {
            return Timestamp::from_second(time.as_second() + seconds).ok();
        }
        let local = self.zone.to_datetime(time);
        let mut at =
            DateTime::new(local.year(), local.month(), local.day(), local.hour(), local.minute(), 0, 0).ok()?;
        let last_year = local.year() + YEARS_MAX;
        loop {
            at = at.checked_add(1.minute()).ok()?;
            loop {
                if at.year() > last_year {
                    return None;
                }
                if !has(self.months, at.month()) {
                    at = at.first_of_month().with().hour(0).minute(0).build().ok()?.checked_add(1.month()).ok()?;
                } else if !self.is_day(&at) {
                    at = at.with().hour(0).minute(0).build().ok()?.checked_add(1.day()).ok()?;
                } else if !has(self.hours, at.hour()) {
                    at = at.with().minute(0).build().ok()?.checked_add(1.hour()).ok()?;
                } else if !has(self.minutes, at.minute()) {
                    at = at.checked_add(1.minute()).ok()?;
                } else {
                    break;
                }
            }
            // An hour that a change of clocks leaves out comes as the one after it, one that it repeats comes once.
            let found = self.zone.to_timestamp(at).ok()?;
            if found > time {
                return Some(found);
            }
        }
    }

    /// The last time that is not after `time`.
    pub(super) fn last_before(&self, time: Timestamp) -> Option<Timestamp> {
        // Ever longer stretches before it are searched.
        for hours in [1, 24, 24 * 31, 24 * 366] {
            let from = Timestamp::from_second(time.as_second() - hours * 3600).ok()?;
            let mut latest = None;
            let mut next = self.next_after(from);
            while let Some(found) = next.filter(|found| *found <= time) {
                latest = Some(found);
                next = self.next_after(found);
            }
            if latest.is_some() {
                return latest;
            }
        }
        None
    }

    /// A time in the schedule's zone, as RFC 3339 has it.
    pub(super) fn format(&self, time: Timestamp) -> String {
        let zoned = time.to_zoned(self.zone.clone());
        if zoned.offset().is_zero() {
            zoned.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
        } else {
            zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
        }
    }

    fn is_day(&self, at: &DateTime) -> bool {
        let day = has(self.days, at.day());
        let weekday = has(self.weekdays, at.weekday().to_sunday_zero_offset());
        if self.any_day || self.any_weekday { day && weekday } else { day || weekday }
    }
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

fn has(set: u64, number: i8) -> bool {
    set & (1 << number) != 0
}

/// A field as a set of numbers.
fn parse_field(text: &str, low: u32, high: u32, names: &[&str]) -> Option<u64> {
    let number = |text: &str| -> Option<u32> {
        let text = text.to_lowercase();
        match names.iter().position(|name| *name == text) {
            Some(index) => Some(index as u32 + low),
            None => text.parse().ok(),
        }
    };
    let mut set = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step.parse::<u32>().ok().filter(|step| *step > 0)?)),
            None => (part, None),
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" || range == "?" => (low, high),
            Some((from, to)) => (number(from)?, number(to)?),
            None => {
                let from = number(range)?;
                (from, if step.is_some() { high } else { from })
            }
        };
        if from < low || to > high || from > to {
            return None;
        }
        for value in (from..=to).step_by(step.unwrap_or(1) as usize) {
            set |= 1 << value;
        }
    }
    Some(set)
}

/// A Go duration of whole units, in seconds.
fn parse_duration(text: &str) -> Option<i64> {
    let mut seconds = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest[..end].parse().ok()?;
        let unit_end = rest[end..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |index| end + index);
        seconds += number
            * match &rest[end..unit_end] {
                "h" => 3600,
                "m" => 60,
                "s" => 1,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    Some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schedule: &str, after: &str) -> String {
        let schedule = Schedule::parse(schedule, TimeZone::UTC).unwrap();
        schedule.next_after(after.parse().unwrap()).map_or("never".to_owned(), |time| schedule.format(time))
    }

    #[test]
    fn the_next_time_is_found() {
        assert_eq!(check("*/15 * * * *", "2026-01-01T00:00:00Z"), "2026-01-01T00:15:00Z");
        assert_eq!(check("0 0 1 1 *", "2026-01-01T00:00:00Z"), "2027-01-01T00:00:00Z");
        assert_eq!(check("30 9 * * mon-fri", "2026-01-02T10:00:00Z"), "2026-01-05T09:30:00Z");
        assert_eq!(check("0 0 13 * 5", "2026-01-01T00:00:00Z"), "2026-01-02T00:00:00Z");
        assert_eq!(check("0 0 30 2 *", "2026-01-01T00:00:00Z"), "never");
        assert_eq!(check("@every 1h30m", "2026-01-01T00:00:00Z"), "2026-01-01T01:30:00Z");
    }

    #[test]
    fn invalid_schedules_are_rejected() {
        for text in ["", "* * * *", "60 * * * *", "* * 0 * *", "5-1 * * * *", "*/0 * * * *"] {
            assert!(Schedule::parse(text, TimeZone::UTC).is_none(), "{text}");
        }
    }
}
