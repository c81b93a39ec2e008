//! Parsers of small texts: what they read they print in a form that means the same to them.

use coxswain_api::codec::gotime;
use coxswain_api::field_set::Set;
use coxswain_api::quantity::{Format, Quantity};
use coxswain_api::selector::{FieldSelector, Selector};
use coxswain_api::time;

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

pub(crate) fn quantity(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let Ok(parsed) = Quantity::parse(text) else { return };
    let canonical = parsed.to_string();
    let again = Quantity::parse(&canonical).unwrap_or_else(|e| panic!("{canonical} of {text}: {e:?}"));
    assert_eq!(again.to_string(), canonical, "of {text}");
    assert_eq!(Quantity::canonical(&canonical).as_deref().ok(), Some(&*canonical));
    assert_eq!(again.sign(), parsed.sign(), "of {text}");
    let (_, _, _) = (parsed.value(), parsed.milli_value(), parsed.as_f64());
    let mut sum = again.clone();
    sum.add(&parsed);
    sum.sub(&parsed);
    // What leaves 127 bits saturates.
    if text.len() < 20 && !text.contains(['e', 'E']) {
        assert_eq!(sum.sign(), parsed.sign(), "{text} + {text} - {text}");
    }
    sum.mul(3);
    sum.neg();
    sum.round_up(0);
    let _ = (Quantity::new(i64::MIN, Format::DecimalSi).to_string(), sum.to_string(), parsed.scaled_value(-9));
}

pub(crate) fn selectors(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Ok(parsed) = Selector::parse(text) {
        let printed = parsed.to_string();
        let again = Selector::parse(&printed).unwrap_or_else(|e| panic!("{printed:?} of {text:?}: {e}"));
        assert_eq!(again.to_string(), printed);
        for value in [None, Some(""), Some("b"), Some("5")] {
            assert_eq!(
                again.matches(|_| value),
                parsed.matches(|_| value),
                "{text:?} and {printed:?} differ on {value:?}"
            );
        }
    }
    if let Ok(parsed) = FieldSelector::parse(text) {
        let printed = parsed.to_string();
        // As upstream's, it sorts its terms as they were written, and writes them without what may be left out.
        let again =
            FieldSelector::parse(&printed).unwrap_or_else(|e| panic!("{printed:?} of {text:?}: {e}")).to_string();
        let once_more = FieldSelector::parse(&again).unwrap_or_else(|e| panic!("{again:?} of {text:?}: {e}"));
        assert_eq!(once_more.to_string(), again);
    }
}

pub(crate) fn times(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    for canonical in [gotime::canonical_time, gotime::canonical_micro_time] {
        if let Ok(Some(once)) = canonical(text) {
            assert_eq!(canonical(&once), Ok(Some(once.clone())), "of {text}");
            assert!(time::parse(&once).is_some(), "{once} of {text}");
        }
    }
    if let Some(nanos) = time::parse_duration(text) {
        assert_eq!(time::parse_duration(&time::format_duration(nanos)), Some(nanos), "of {text}");
    }
    let _ = time::parse(text);
}

/// Field sets in their wire form, and the algebra of sets.
pub(crate) fn field_paths(bytes: &[u8]) {
    let mut halves = bytes.splitn(2, |b| *b == b'|');
    let mut read = || {
        let decoded = coxswain_api::codec::json::decode_any(halves.next().unwrap_or_default()).ok()?;
        Set::from_fields_v1(&decoded.value).ok()
    };
    let Some(a) = read() else { return };
    let wire = a.to_fields_v1();
    let again = Set::from_fields_v1(&wire).unwrap_or_else(|e| panic!("{wire}: {e}"));
    assert_eq!(again.paths(), a.paths(), "{wire}");
    let Some(b) = read() else { return };
    let (union, common) = (a.union(&b), a.intersection(&b));
    assert_eq!(union.paths(), b.union(&a).paths());
    assert_eq!(common.paths(), b.intersection(&a).paths());
    assert_eq!(a.difference(&b).union(&common).paths(), a.paths());
    assert!(a.difference(&a).is_empty());
    assert_eq!(union.difference(&b).paths(), a.difference(&b).paths());
    let _ = (a.recursive_difference(&b), a.leaves());
}
