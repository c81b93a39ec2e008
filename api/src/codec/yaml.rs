//! YAML (upstream: `sigs.k8s.io/yaml` on `go.yaml.in/yaml/v2`).
//!
//! YAML is only a way to write JSON: a document is read into a tree by YAML 1.1's rules for scalars (`yes` is true, `0777` is
//! octal, as Go's library has it), and that goes through JSON's decoder. As upstream, only the first document of a stream counts.

mod read;
mod scalar;
mod write;

use super::{DecodeError, Decoded, TypeMeta, json};
use crate::schema::StructRef;
use serde_json::Value;

/// Decodes an object of a known type into its canonical tree.
pub fn decode(bytes: &[u8], schema: &StructRef) -> Result<Decoded, DecodeError> {
    let read = decode_any(bytes)?;
    let mut decoded = json::decode_tree(&read.value, schema)?;
    decoded.strict_errors.splice(0..0, read.strict_errors);
    Ok(decoded)
}

/// Reads a document as it is. Duplicate keys are one strict error, as upstream's strict reader words it; the last one counts.
pub fn decode_any(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    // JSON is YAML, all but a few corners, and quicker read as what it is.
    if json::looks_like_json(bytes)
        && let Ok(decoded) = json::decode_any(bytes)
        && decoded.strict_errors.is_empty()
    {
        return Ok(decoded);
    }
    read::document(bytes)
}

/// The document as JSON.
pub fn to_json(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut text = Vec::with_capacity(bytes.len());
    json::encode_value(&decode_any(bytes)?.value, &mut text);
    Ok(text)
}

/// The kind and version that the bytes name. What is wrong with them is said of the JSON.
pub fn interpret(bytes: &[u8]) -> Result<TypeMeta, DecodeError> {
    json::interpret(&to_json(bytes)?)
}

/// Appends a tree as upstream writes it: keys in natural order, two spaces, lists not indented within maps.
pub fn encode(value: &Value, schema: &StructRef, out: &mut Vec<u8>) {
    let mut text = Vec::with_capacity(1024);
    json::encode(value, schema, &mut text);
    if let Ok(decoded) = json::decode_any(&text) {
        encode_value(&decoded.value, out);
    }
}

/// Appends any tree.
pub fn encode_value(value: &Value, out: &mut Vec<u8>) {
    write::document(value, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(text: &str) -> Value {
        decode_any(text.as_bytes()).unwrap().value
    }

    #[test]
    fn scalars_follow_yaml_1_1_as_go_reads_it() {
        let text = "a: yes\nb: 0777\nc: 'yes'\nd: 1_000\ne: 1.0\nf: ~\ng: 2001-01-01\nh: 0x1f\ni: 1:30\n1: x\nj: !!str 5\nk: .5\n";
        let want = json!({"a": true, "b": 511, "c": "yes", "d": 1000, "e": 1, "f": null, "g": "2001-01-01", "h": 31,
            "i": "1:30", "1": "x", "j": "5", "k": 0.5});
        assert_eq!(read(text), want);
        assert_eq!(
            read("x: &a {p: 1, q: 2}\nz:\n  <<: *a\n  q: 3\n"),
            json!({"x": {"p": 1, "q": 2}, "z": {"p": 1, "q": 3}})
        );
    }

    #[test]
    fn duplicate_keys_are_reported_and_the_last_one_counts() {
        let decoded = decode_any(b"a: 1\nb: 2\na: 3\n").unwrap();
        assert_eq!(decoded.value, json!({"a": 3, "b": 2}));
        assert_eq!(decoded.strict_errors, ["yaml: unmarshal errors:\n  line 3: key \"a\" already set in map"]);
    }

    #[test]
    fn refusals_are_those_of_go() {
        let refused = |text: &str| decode_any(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(refused("a: [b"), "yaml: line 1: did not find expected ',' or ']'");
        assert_eq!(refused("a: b: c"), "yaml: mapping values are not allowed in this context");
        assert_eq!(refused(&"[".repeat(20_000)), "yaml: exceeded max depth of 10000");
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..9 {
            bomb.push_str(&format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(",")));
        }
        assert_eq!(refused(&bomb), "yaml: document contains excessive aliasing");
    }

    #[test]
    fn writing_quotes_what_would_read_as_something_else() {
        let mut out = Vec::new();
        encode_value(
            &json!({"b10": "yes", "b9": "1", "a": ["x", {"k": "v", "l": []}], "t": "two\nlines", "n": null, "e": {}, "f": 1.5, "s": "", "d": "2001-02-03T04:05:06Z", "d2": "2001-02-03x"}),
            &mut out,
        );
        let want = concat!(
            "a:\n- x\n- k: v\n  l: []\nb9: \"1\"\nb10: \"yes\"\nd: \"2001-02-03T04:05:06Z\"\nd2: 2001-02-03x\ne: {}\nf: 1.5\n\"n\": null\ns: \"\"\n",
            "t: |-\n  two\n  lines\n"
        );
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }
}
