//! Sets of indexes of an indexed job, such as `1,3-5,7` (upstream: `validateIndexesFormat`).

use coxswain_api::field::go_quote;

/// How many indexes there are, all below `completions` and in order.
pub fn count(text: &str, completions: i64) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let (mut last, mut total) = (None, 0);
    for part in text.split(',') {
        let (low, high) = interval(part, completions)?;
        if let Some(last) = last.filter(|last| *last >= low) {
            return Err(format!("non-increasing order, previous: {last}, current: {low}"));
        }
        total += high - low + 1;
        last = Some(high);
    }
    Ok(total)
}

/// An index that is in both sets. Parts that cannot be read are skipped.
pub fn overlap(completed: &str, failed: &str, completions: i64) -> Option<i64> {
    let read = |text: &str| -> Vec<(i64, i64)> {
        text.split(',').filter_map(|part| interval(part, completions).ok()).collect()
    };
    let (completed, failed) = (read(completed), read(failed));
    let (mut c, mut f) = (completed.iter().peekable(), failed.iter().peekable());
    while let (Some((c_low, c_high)), Some((f_low, f_high))) = (c.peek(), f.peek()) {
        if c_low <= f_high && f_low <= c_high {
            return Some(*c_low.max(f_low));
        }
        if c_low <= f_low {
            c.next()
        } else {
            f.next()
        };
    }
    None
}

fn interval(part: &str, completions: i64) -> Result<(i64, i64), String> {
    let ends: Vec<&str> = part.split('-').collect();
    if ends.len() > 2 {
        return Err(format!(
            "the fragment {} violates the requirement that an index interval can have at most two parts separated by '-'",
            go_quote(part)
        ));
    }
    let index = |text: &str| -> Result<i64, String> {
        let number: i64 =
            text.parse().map_err(|_| format!("cannot convert string to integer for index: {}", go_quote(text)))?;
        if number >= completions { Err(format!("too large index: {}", go_quote(text))) } else { Ok(number) }
    };
    let low = index(ends[0])?;
    let Some(end) = ends.get(1) else { return Ok((low, low)) };
    let high = index(end)?;
    if low >= high {
        return Err(format!("non-increasing order, previous: {low}, current: {high}"));
    }
    Ok((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_counted() {
        assert_eq!(count("", 3), Ok(0));
        assert_eq!(count("1,3-5,7", 9), Ok(5));
        assert_eq!(count("1,3-5,7", 7), Err("too large index: \"7\"".into()));
        assert_eq!(count("3,1", 7), Err("non-increasing order, previous: 3, current: 1".into()));
        assert_eq!(count("5-5", 7), Err("non-increasing order, previous: 5, current: 5".into()));
        assert_eq!(count("a", 7), Err("cannot convert string to integer for index: \"a\"".into()));
        assert!(count("1-2-3", 7).is_err());
    }

    #[test]
    fn overlaps_are_found() {
        assert_eq!(overlap("0-3", "4,6", 9), None);
        assert_eq!(overlap("0-3,6", "4,6", 9), Some(6));
        assert_eq!(overlap("", "4", 9), None);
    }
}
