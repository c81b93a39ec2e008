//! A stream of events into a tree (upstream: `decode.go` of `yaml/v2`).

use super::scalar;
use crate::codec::{DecodeError, Decoded};
use libyaml_safer::{ErrorKind, Event, EventData, Parser, ScalarStyle};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

type Result<T> = std::result::Result<T, DecodeError>;

/// Upstream's limit of nesting. Trees themselves are refused earlier, at [`crate::codec::json::DEPTH_MAX`].
const DEPTH_MAX: usize = 10_000;

struct Reader<'a> {
    parser: Parser<&'a [u8]>,
    /// What anchors name, with the number of values in it.
    anchors: HashMap<String, (Value, usize)>,
    /// All values made so far, and those of them that aliases made: a small document must not become a big tree.
    values: usize,
    aliased: usize,
    duplicates: Vec<String>,
}

pub(super) fn document(bytes: &[u8]) -> Result<Decoded> {
    // The parser's own reading of UTF-16 and of byte order marks is not robust.
    let utf8;
    let mut bytes = bytes;
    if let [0xff, 0xfe, rest @ ..] | [0xfe, 0xff, rest @ ..] = bytes {
        let big_endian = bytes[0] == 0xfe;
        let units = rest.chunks(2).map(|pair| {
            let pair = [pair[0], pair.get(1).copied().unwrap_or_default()];
            if big_endian { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) }
        });
        let units: Vec<u16> = units.collect();
        utf8 = String::from_utf16_lossy(&units);
        bytes = utf8.as_bytes();
    }
    // The scanner looks past a backslash, and past the head of a block of text, without asking whether there is more.
    let closed;
    bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let last_line = bytes.rsplit(|b| matches!(b, b'\n' | b'\r')).next().unwrap_or_default();
    if last_line.iter().any(|b| matches!(b, b'\\' | b'|' | b'>')) {
        closed = [bytes, b"\n"].concat();
        bytes = &closed;
    }
    let mut reader =
        Reader { parser: Parser::new(), anchors: HashMap::new(), values: 0, aliased: 0, duplicates: Vec::new() };
    reader.parser.set_input(bytes);
    reader.parser.set_encoding(libyaml_safer::Encoding::Utf8);
    let mut value = Value::Null;
    loop {
        let event = reader.next()?;
        match event.data {
            EventData::StreamStart { .. } | EventData::DocumentStart { .. } => {}
            EventData::StreamEnd | EventData::DocumentEnd { .. } => break,
            _ => value = reader.value(event, 0)?,
        }
    }
    let mut strict_errors = Vec::new();
    if !reader.duplicates.is_empty() {
        strict_errors.push(format!("yaml: unmarshal errors:\n  {}", reader.duplicates.join("\n  ")));
    }
    Ok(Decoded { value, strict_errors })
}

fn refuse<T>(message: &str) -> Result<T> {
    Err(DecodeError::Syntax(format!("yaml: {message}")))
}

impl Reader<'_> {
    fn next(&mut self) -> Result<Event> {
        // The parser panics on a few malformed documents. It is not used any more after it has.
        let parsed = catch_unwind(AssertUnwindSafe(|| self.parser.parse()));
        let Ok(parsed) = parsed else { return refuse("did not find expected node content") };
        parsed.map_err(|error| {
            let line = |mark: Option<libyaml_safer::Mark>| mark.map_or(0, |m| m.line);
            let line = match line(error.problem_mark()) {
                0 => line(error.context_mark()),
                // A scanner stops before it counts the line.
                n if error.kind() == ErrorKind::Scanner => n + 1,
                n => n,
            };
            let at = if line > 0 { format!("line {line}: ") } else { String::new() };
            DecodeError::Syntax(format!("yaml: {at}{}", error.problem()))
        })
    }

    fn value(&mut self, event: Event, depth: usize) -> Result<Value> {
        if depth > crate::codec::json::DEPTH_MAX {
            return refuse(&format!("exceeded max depth of {DEPTH_MAX}"));
        }
        let before = self.values;
        self.values += 1;
        let (anchor, value) = match event.data {
            EventData::Alias { anchor } => {
                let Some((value, size)) = self.anchors.get(&anchor) else {
                    return refuse(&format!("unknown anchor '{anchor}' referenced"));
                };
                self.values += size;
                self.aliased += size;
                // Upstream's bounds: the more values, the smaller the part of them that aliases may make.
                let allowed = match self.values {
                    ..=400_000 => 0.99,
                    4_000_000.. => 0.10,
                    n => 0.99 - 0.89 * ((n - 400_000) as f64 / 3_600_000.0),
                };
                if self.aliased > 100 && self.values > 1000 && self.aliased as f64 / self.values as f64 > allowed {
                    return refuse("document contains excessive aliasing");
                }
                return Ok(value.clone());
            }
            EventData::Scalar { anchor, tag, value, style, .. } => {
                (anchor, scalar_value(value, tag.as_deref(), style)?)
            }
            EventData::SequenceStart { anchor, .. } => {
                let mut items = Vec::new();
                loop {
                    let event = self.next()?;
                    if event.data == EventData::SequenceEnd {
                        break;
                    }
                    items.push(self.value(event, depth + 1)?);
                }
                (anchor, Value::Array(items))
            }
            EventData::MappingStart { anchor, .. } => (anchor, Value::Object(self.mapping(depth)?)),
            _ => return refuse("unexpected event"),
        };
        if let Some(anchor) = anchor {
            self.anchors.insert(anchor, (value.clone(), self.values - before));
        }
        Ok(value)
    }

    fn mapping(&mut self, depth: usize) -> Result<Map<String, Value>> {
        let mut map = Map::new();
        // Keys that a merge brought, which the map's own keys replace without a word.
        let mut merged = Map::new();
        loop {
            let event = self.next()?;
            let line = event.start_mark.line + 1;
            let is_merge = match &event.data {
                EventData::MappingEnd => break,
                EventData::Scalar { value, style: ScalarStyle::Plain, .. } => value == "<<",
                _ => false,
            };
            let key = self.value(event, depth + 1)?;
            let event = self.next()?;
            let value = self.value(event, depth + 1)?;
            if is_merge {
                merge(&mut merged, value)?;
                continue;
            }
            let key = match key {
                Value::String(key) => key,
                Value::Bool(b) => b.to_string(),
                Value::Number(n) => scalar::key_of_number(&n),
                Value::Null => {
                    let message = format!("unsupported map key of type: nil, key: <nil>, value: {value}");
                    return Err(DecodeError::Syntax(message));
                }
                _ => return refuse("invalid map key: map[interface {}]interface {}"),
            };
            if map.contains_key(&key) {
                self.duplicates.push(format!("line {line}: key {} already set in map", crate::field::go_quote(&key)));
            }
            map.insert(key, value);
        }
        for (key, value) in merged {
            map.entry(key).or_insert(value);
        }
        Ok(map)
    }
}

/// Of several merged maps the first that has a key wins.
fn merge(into: &mut Map<String, Value>, value: Value) -> Result<()> {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                into.entry(key).or_insert(value);
            }
            Ok(())
        }
        Value::Array(maps) if maps.iter().all(Value::is_object) => {
            for map in maps {
                merge(into, map)?;
            }
            Ok(())
        }
        _ => refuse("map merge requires map or sequence of maps as the value"),
    }
}

fn scalar_value(text: String, tag: Option<&str>, style: ScalarStyle) -> Result<Value> {
    match tag.map(|t| t.strip_prefix("tag:yaml.org,2002:").unwrap_or(t)) {
        Some("str" | "!") => return Ok(Value::String(text)),
        Some("binary") => {
            use base64::Engine;
            let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(text.replace(['\n', ' '], "")) else {
                return refuse("!!binary value contains invalid base64 data");
            };
            return Ok(Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        }
        Some(_) => {}
        None if style != ScalarStyle::Plain => return Ok(Value::String(text)),
        None => {}
    }
    match scalar::resolve(&text) {
        Some(value) => Ok(value),
        None => {
            let go = if text.to_ascii_lowercase().ends_with("nan") {
                "NaN"
            } else if text.starts_with('-') {
                "-Inf"
            } else {
                "+Inf"
            };
            Err(DecodeError::Syntax(format!("json: unsupported value: {go}")))
        }
    }
}
