//! A tree into YAML (upstream: `encode.go` and `sorter.go` of `yaml/v2`).

use super::scalar;
use libyaml_safer::{Emitter, Event, MappingStyle, ScalarStyle, SequenceStyle};
use serde_json::Value;
use std::cmp::Ordering;

pub(super) fn document(value: &Value, out: &mut Vec<u8>) {
    let mut text = Vec::with_capacity(1024);
    let mut emitter = Emitter::new();
    emitter.set_output_string(&mut text);
    emitter.set_unicode(true);
    let mut events = vec![Event::stream_start(libyaml_safer::Encoding::Utf8), Event::document_start(None, &[], true)];
    push(value, &mut events);
    events.push(Event::document_end(true));
    events.push(Event::stream_end());
    // Writing to memory a well-formed stream of events cannot fail.
    let written = events.into_iter().try_for_each(|event| emitter.emit(event));
    debug_assert!(written.is_ok());
    drop(emitter);
    out.extend_from_slice(&text);
}

fn push(value: &Value, events: &mut Vec<Event>) {
    let plain = |text: &str| Event::scalar(None, None, text, true, true, ScalarStyle::Plain);
    match value {
        Value::Null => events.push(plain("null")),
        Value::Bool(b) => events.push(plain(if *b { "true" } else { "false" })),
        Value::Number(n) => events.push(plain(&scalar::key_of_number(n))),
        Value::String(text) => events.push(string(text)),
        Value::Array(items) => {
            events.push(Event::sequence_start(None, None, true, SequenceStyle::Block));
            items.iter().for_each(|item| push(item, events));
            events.push(Event::sequence_end());
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| natural(a.0, b.0));
            events.push(Event::mapping_start(None, None, true, MappingStyle::Block));
            for (key, value) in entries {
                events.push(string(key));
                push(value, events);
            }
            events.push(Event::mapping_end());
        }
    }
}

fn string(text: &str) -> Event {
    let style = if text.contains('\n') {
        ScalarStyle::Literal
    } else if scalar::needs_quotes(text) {
        ScalarStyle::DoubleQuoted
    } else {
        ScalarStyle::Plain
    };
    Event::scalar(None, None, text, true, true, style)
}

/// Digits compare as numbers, and letters come after everything else, as Go's library sorts keys.
fn natural(a: &str, b: &str) -> Ordering {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut digits = false;
    for i in 0..a.len().min(b.len()) {
        if a[i] == b[i] {
            digits = a[i].is_ascii_digit();
            continue;
        }
        let (al, bl) = (a[i].is_alphabetic(), b[i].is_alphabetic());
        if al && bl {
            return a[i].cmp(&b[i]);
        }
        if al || bl {
            return match digits {
                true if al => Ordering::Less,
                true => Ordering::Greater,
                false if bl => Ordering::Less,
                false => Ordering::Greater,
            };
        }
        // Leading zeros make equal numbers of different length; the later difference decides.
        let number = |s: &[char]| {
            let from = if s[i] == '0' || i > 0 {
                s[..i].iter().rposition(|c| !c.is_ascii_digit()).map_or(0, |p| p + 1)
            } else {
                i
            };
            let text: String = s[from..].iter().take_while(|c| c.is_ascii_digit()).collect();
            text.parse::<u128>().ok()
        };
        return match (number(&a), number(&b)) {
            (Some(x), Some(y)) if x != y => x.cmp(&y),
            _ => a[i].cmp(&b[i]),
        };
    }
    a.len().cmp(&b.len())
}
