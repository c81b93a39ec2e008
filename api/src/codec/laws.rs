//! What must hold for any input: documents survive every encoding, and no bytes make a decoder panic.

use super::{Format, canonicalize, cbor, decode, json, protobuf, yaml};
use crate::schema::{StructRef, builtin};
use proptest::prelude::*;
use serde_json::{Map, Value};

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        // Whole floats print as integers, and are read back as such.
        (-1e9..1e9f64).prop_map(|f| Value::from(f.trunc() + 0.25)),
        "\\PC{0,12}".prop_map(Value::from),
        "[a-z0-9:.~ -]{0,10}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z0-9./<>-]{0,8}", inner, 0..6)
                .prop_map(|map| Value::from(map.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn pod() -> &'static StructRef {
    builtin().short("core.v1.Pod").unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_document_survives_every_text(value in any_value()) {
        let mut text = Vec::new();
        json::encode_value(&value, &mut text);
        prop_assert_eq!(&json::decode_any(&text).unwrap().value, &value);
        text.clear();
        yaml::encode_value(&value, &mut text);
        prop_assert_eq!(&yaml::decode_any(&text).unwrap().value, &value, "{}", String::from_utf8_lossy(&text));
    }

    #[test]
    fn decoding_is_idempotent(value in any_value()) {
        // Whatever an object's labels, annotations and unknown fields are, a canonical tree stays as it is.
        let tree = serde_json::json!({"metadata": value, "spec": {"containers": [{"name": "c", "x": 1}]}});
        if let Ok(decoded) = json::decode_tree(&tree, pod()) {
            let again = json::decode_tree(&decoded.value, pod()).unwrap();
            prop_assert_eq!(&again.value, &decoded.value);
            prop_assert!(again.strict_errors.is_empty());
            let mut canonical = decoded.value.clone();
            canonicalize(&mut canonical, pod());
            prop_assert_eq!(&canonical, &decoded.value);
            let mut wire = Vec::new();
            protobuf::encode_message(&decoded.value, pod(), &mut wire);
            prop_assert_eq!(&protobuf::decode_message(&wire, pod()).unwrap(), &decoded.value);
        }
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for format in [Format::Json, Format::Cbor, Format::Protobuf, Format::Yaml] {
            let _ = decode(&bytes, format, pod());
        }
        let _ = protobuf::decode_message(&bytes, pod());
        let _ = cbor::decode_any(&bytes);
        let _ = json::interpret(&bytes);
    }

    #[test]
    fn no_text_makes_a_decoder_panic(text in "[\\[\\]{}:,\"'\\\\/ntfu0-9eE.+ a&*!|>%@#\n-]{0,80}") {
        for format in [Format::Json, Format::Yaml] {
            let _ = decode(text.as_bytes(), format, pod());
        }
    }
}
