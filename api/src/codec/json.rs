//! JSON (upstream: `sigs.k8s.io/json` for decoding, Go's `encoding/json` for encoding).
//!
//! [`decode`] is the hot path of every write: one pass over the bytes makes the canonical tree, prunes, checks types and
//! reports. [`interpret`] finds `apiVersion` and `kind` first, as upstream does.

mod parser;
mod typed;
mod write;

use super::{DecodeError, Decoded, TypeMeta};
use crate::schema::StructRef;
use parser::Parser;
use serde_json::Value;

pub use write::{encode, encode_value, write_string};
pub(crate) use write::{go_float, number_of_float};

/// How deep a document may nest. Upstream's limit is 10,000; nothing that Kubernetes knows comes near this one, and no
/// input may exhaust the stack.
pub const DEPTH_MAX: usize = 256;

/// Decodes an object of a known type into its canonical tree. `kind` and `apiVersion` are fields like any other.
///
/// Objects of custom resources (a schema without a name) are decoded as they are, duplicates reported: their pruning
/// comes after conversion.
pub fn decode(bytes: &[u8], schema: &StructRef) -> Result<Decoded, DecodeError> {
    typed::decode(bytes, schema)
}

/// Decodes any JSON as it is; duplicate fields are reported as strict errors.
pub fn decode_any(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let mut parser = Parser::new(bytes);
    let mut strict = typed::StrictErrors::default();
    let value = parser.document(|p| typed::any(p, &mut strict))?;
    Ok(Decoded { value, strict_errors: strict.finish() })
}

/// Reads JSON that was checked when it was written: the fast way, which knows a depth of 128 only, and for the few objects
/// that nest deeper the thorough one.
pub fn read_back(bytes: &[u8]) -> Result<Value, DecodeError> {
    match serde_json::from_slice(bytes) {
        Ok(value) => Ok(value),
        Err(_) => decode_any(bytes).map(|decoded| decoded.value),
    }
}

/// Makes the canonical tree of a tree of any shape, such as one that a patch has made, reporting as [`decode`] does.
pub fn decode_tree(value: &Value, schema: &StructRef) -> Result<Decoded, DecodeError> {
    let mut bytes = Vec::with_capacity(1024);
    encode_value(value, &mut bytes);
    decode(&bytes, schema)
}

/// The kind and version that the bytes name (upstream: `SimpleMetaFactory.Interpret`). Both may be empty. The error is the
/// text after `couldn't get version/kind; json parse error: `.
pub fn interpret(bytes: &[u8]) -> Result<TypeMeta, DecodeError> {
    let mut parser = Parser::new(bytes);
    let mut found = TypeMeta::default();
    let mut wrong: Option<DecodeError> = None;
    parser.document(|p| {
        if p.peek_value()? != b'{' {
            let what = p.skip_value()?;
            if what != "null" {
                // Go prints the type of its own anonymous struct.
                let go_type =
                    r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
                wrong = Some(DecodeError::Value(format!(
                    "json: cannot unmarshal {what} into Go value of type {go_type}"
                )));
            }
            return Ok(());
        }
        p.object(|p, key| {
            // The standard library's decoder, which upstream uses here, is lax about case.
            let slot = if key.eq_ignore_ascii_case("apiVersion") {
                &mut found.api_version
            } else if key.eq_ignore_ascii_case("kind") {
                &mut found.kind
            } else {
                return p.skip_value().map(drop);
            };
            if p.peek_value()? == b'"' {
                *slot = p.string()?.into_owned();
                return Ok(());
            }
            let what = p.skip_value()?;
            if what != "null" && wrong.is_none() {
                let field = if key.eq_ignore_ascii_case("kind") { "kind" } else { "apiVersion" };
                wrong = Some(DecodeError::Value(format!(
                    "json: cannot unmarshal {what} into Go struct field .{field} of type string"
                )));
            }
            Ok(())
        })
    })?;
    match wrong {
        Some(error) => Err(error),
        None => Ok(found),
    }
}

/// Whether the bytes look like JSON: the first byte that is no space is `{` (upstream: `yaml.IsJSONBuffer`).
pub fn looks_like_json(bytes: &[u8]) -> bool {
    bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::builtin;
    use serde_json::json;

    fn check(kind: &str, text: &str, value: Value, strict: &[&str]) {
        let decoded = decode(text.as_bytes(), builtin().short(kind).unwrap()).unwrap();
        assert_eq!(decoded.value, value);
        assert_eq!(decoded.strict_errors, strict);
    }

    fn refused(kind: &str, text: &str) -> String {
        decode(text.as_bytes(), builtin().short(kind).unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn decoding_prunes_reports_and_makes_canonical() {
        check(
            "core.v1.Service",
            r#"{"kind":"Service","Metadata":{},"metadata":{"name":"a","labels":{"x":"1","x":"2"},"creationTimestamp":null},
               "spec":{"bogus":[{}],"ports":[{"port":80,"extra":true,"port":81}],"type":""},"kind":"Service"}"#,
            json!({"kind":"Service","metadata":{"name":"a","labels":{"x":"2"}},
                "spec":{"ports":[{"port":81,"targetPort":0}]},"status":{"loadBalancer":{}}}),
            &[
                r#"unknown field "Metadata""#,
                r#"duplicate field "metadata.labels.x""#,
                r#"unknown field "spec.bogus""#,
                r#"unknown field "spec.ports[0].extra""#,
                r#"duplicate field "spec.ports[0].port""#,
                r#"duplicate field "kind""#,
            ],
        );
        check(
            "core.v1.ResourceRequirements",
            r#"{"limits":{"cpu":0.5,"memory":"1024Ki"},"requests":{}}"#,
            json!({"limits":{"cpu":"500m","memory":"1Mi"}}),
            &[],
        );
    }

    #[test]
    fn values_of_the_wrong_type_are_refused_in_the_words_of_go() {
        let check = |kind, text, want| assert_eq!(refused(kind, text), want);
        check(
            "core.v1.Pod",
            r#"{"spec":{"containers":"x"}}"#,
            "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container",
        );
        check(
            "core.v1.Pod",
            r#"{"spec":{"containers":[{"imagePullPolicy":7}]}}"#,
            "json: cannot unmarshal number into Go struct field Container.spec.containers.imagePullPolicy of type v1.PullPolicy",
        );
        check(
            "core.v1.ConfigMap",
            r#"{"data":{"a":1}}"#,
            "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
        );
        check(
            "core.v1.Pod",
            r#"{"spec":{"terminationGracePeriodSeconds":1.5}}"#,
            "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.terminationGracePeriodSeconds of type int64",
        );
        check("core.v1.Secret", r#"{"data":{"a":"*"}}"#, "illegal base64 data at input byte 0");
        check("core.v1.Pod", r#"{"spec": }"#, "invalid character '}' looking for beginning of value");
        check("core.v1.Pod", r#"{"kind": "#, "unexpected end of JSON input");
        check("core.v1.Pod", &"[".repeat(100_000), "exceeded max depth");
    }

    #[test]
    fn encoding_follows_the_schema_and_escapes_as_go_does() {
        let schema = builtin().short("core.v1.ConfigMap").unwrap();
        let tree = json!({"data": {"b": "<&>\u{2028}", "a": "\u{1}\n"}, "metadata": {"name": "x"}, "kind": "ConfigMap",
            "apiVersion": "v1", "immutable": false});
        let mut out = Vec::new();
        encode(&tree, schema, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            concat!(
                r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"},"immutable":false,"#,
                r#""data":{"a":"\u0001\n","b":"\u003c\u0026\u003e\u2028"}}"#
            )
        );
    }

    #[test]
    fn whatever_is_taken_can_be_read_back() {
        let deepest = format!("{}1{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX));
        let value = decode_any(deepest.as_bytes()).unwrap().value;
        assert_eq!(read_back(deepest.as_bytes()).unwrap(), value);
        assert!(read_back(format!("[{deepest}]").as_bytes()).is_err());
    }

    #[test]
    fn the_kind_is_found_before_anything_else() {
        let found = interpret(br#"{"spec":{"kind":"x"},"kind":"Pod","apiVersion":"v1"}"#).unwrap();
        assert_eq!(found, TypeMeta { api_version: "v1".into(), kind: "Pod".into() });
        let refused = interpret(b"{nope").unwrap_err().to_string();
        assert_eq!(refused, "invalid character 'n' looking for beginning of object key string");
        assert_eq!(interpret(b"").unwrap_err().to_string(), "unexpected end of JSON input");
    }
}
