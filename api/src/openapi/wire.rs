//! The documents in protobuf, as kubectl and Go clients ask for them (upstream: `gnostic-models`, messages `openapi.v2.Document`
//! and `openapi.v3.Document`).
//!
//! A table says which member of which JSON object goes under which number. Of the messages it has what our documents use.

use super::Dialect;
use crate::codec::{protobuf as wire, yaml};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Name of the message, then `MEMBER=NUMBER:KIND`. Kinds: `s` text, `b` truth value, `i` integer, `d` float, `a` anything (as
/// YAML), a message by name, `[…]` for a list, `{…}` for a map, which is a message of named values. `^=` takes the members that
/// are not named, `x-=` the extensions.
const V2: &str = "
Document swagger=1:s info=2:Info paths=8:Paths definitions=9:{Schema} parameters=10:{Parameter} security=12:[SecurityRequirement] securityDefinitions=13:{SecurityDefinition}
Info title=1:s version=2:s description=3:s
Paths ^=2:PathItem
PathItem $ref=1:s get=2:Operation put=3:Operation post=4:Operation delete=5:Operation options=6:Operation head=7:Operation patch=8:Operation parameters=9:[ParametersItem] x-=10
Operation tags=1:[s] summary=2:s description=3:s operationId=5:s produces=6:[s] consumes=7:[s] parameters=8:[ParametersItem] responses=9:Responses schemes=10:[s] deprecated=11:b x-=13
BodyParameter description=1:s name=2:s in=3:s required=4:b schema=5:Schema x-=6
QueryParameter required=1:b in=2:s description=3:s name=4:s allowEmptyValue=5:b type=6:s format=7:s uniqueItems=20:b x-=23
PathParameter required=1:b in=2:s description=3:s name=4:s type=5:s format=6:s uniqueItems=19:b x-=22
Responses ^=1:ResponseValue
Response description=1:s schema=2:SchemaItem x-=5
JsonReference $ref=1:s description=2:s
Schema $ref=1:s format=2:s title=3:s description=4:s default=5:a multipleOf=6:d maximum=7:d exclusiveMaximum=8:b minimum=9:d exclusiveMinimum=10:b maxLength=11:i minLength=12:i pattern=13:s maxItems=14:i minItems=15:i uniqueItems=16:b maxProperties=17:i minProperties=18:i required=19:[s] enum=20:[a] additionalProperties=21:AdditionalPropertiesItem type=22:TypeItem items=23:ItemsItem allOf=24:[Schema] properties=25:{Schema} example=30:a x-=31
ApiKeySecurity type=1:s name=2:s in=3:s description=4:s x-=5
SecurityRequirement ^=1:StringArray
";
const V3: &str = "
Document openapi=1:s info=2:Info paths=4:Paths components=5:Components security=6:[SecurityRequirement] x-=9
Info title=1:s description=2:s version=6:s
Paths ^=1:PathItem
PathItem $ref=1:s summary=2:s description=3:s get=4:Operation put=5:Operation post=6:Operation delete=7:Operation options=8:Operation head=9:Operation patch=10:Operation parameters=13:[ParameterOrReference] x-=14
Operation tags=1:[s] summary=2:s description=3:s operationId=5:s parameters=6:[ParameterOrReference] requestBody=7:RequestBodyOrReference responses=8:Responses deprecated=10:b x-=13
Parameter name=1:s in=2:s description=3:s required=4:b deprecated=5:b schema=10:SchemaOrReference x-=14
RequestBody description=1:s content=2:{MediaType} required=3:b x-=4
MediaType schema=1:SchemaOrReference x-=5
Responses ^=2:ResponseOrReference
Response description=1:s content=3:{MediaType} x-=5
Components schemas=1:{SchemaOrReference} securitySchemes=7:{SecuritySchemeOrReference} x-=10
JsonReference $ref=1:s summary=2:s description=3:s
Schema nullable=1:b readOnly=3:b writeOnly=4:b example=7:a deprecated=8:b title=9:s multipleOf=10:d maximum=11:d exclusiveMaximum=12:b minimum=13:d exclusiveMinimum=14:b maxLength=15:i minLength=16:i pattern=17:s maxItems=18:i minItems=19:i uniqueItems=20:b maxProperties=21:i minProperties=22:i required=23:[s] enum=24:[a] type=25:s allOf=26:[SchemaOrReference] oneOf=27:[SchemaOrReference] anyOf=28:[SchemaOrReference] not=29:Schema items=30:ItemsItem properties=31:{SchemaOrReference} additionalProperties=32:AdditionalPropertiesItem default=33:DefaultType description=34:s format=35:s x-=36
SecurityScheme type=1:s description=2:s name=3:s in=4:s scheme=5:s x-=9
SecurityRequirement ^=1:StringArray
";

#[derive(Clone, Copy)]
struct Member {
    number: u32,
    kind: &'static str,
}

#[derive(Default)]
struct Message {
    /// In the order of the numbers.
    members: Vec<(&'static str, Member)>,
    others: Option<Member>,
    extensions: Option<u32>,
}

struct Encoder {
    dialect: Dialect,
    messages: HashMap<&'static str, Message>,
}

/// Encodes a document that is given as JSON.
pub(super) fn encode(document: &Value, dialect: Dialect) -> Vec<u8> {
    let table = if dialect == Dialect::V2 { V2 } else { V3 };
    let encoder = Encoder { dialect, messages: read(table) };
    let mut out = Vec::with_capacity(512 * 1024);
    encoder.message(document, "Document", &mut out);
    out
}

fn read(table: &'static str) -> HashMap<&'static str, Message> {
    let line = |line: &'static str| {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let mut message = Message::default();
        for word in words {
            // A member's name may hold an equals sign in none of our messages.
            let (member, rest) = word.split_once('=').unwrap_or((word, ""));
            let (number, kind) = rest.split_once(':').unwrap_or((rest, ""));
            let number = number.parse().unwrap_or_default();
            match member {
                "^" => message.others = Some(Member { number, kind }),
                "x-" => message.extensions = Some(number),
                _ => message.members.push((member, Member { number, kind })),
            }
        }
        (name, message)
    };
    table.lines().filter(|l| !l.is_empty()).map(line).collect()
}

impl Encoder {
    fn message(&self, value: &Value, name: &str, out: &mut Vec<u8>) {
        let Some(message) = self.messages.get(name) else { return self.alternative(value, name, out) };
        let Value::Object(map) = value else { return };
        for (member, Member { number, kind }) in &message.members {
            if let Some(value) = map.get(*member) {
                self.member(value, *number, kind, out);
            }
        }
        if let Some(Member { number, kind }) = message.others {
            let known = |key: &str| message.members.iter().any(|(name, _)| *name == key) || key.starts_with("x-");
            self.named(map.iter().filter(|(key, _)| !known(key)), number, kind, out);
        }
        if let Some(number) = message.extensions {
            self.named(map.iter().filter(|(key, _)| key.starts_with("x-")), number, "a", out);
        }
    }

    /// Named values, each a message of a name and a value.
    fn named<'a>(
        &self,
        entries: impl Iterator<Item = (&'a String, &'a Value)>,
        number: u32,
        kind: &str,
        out: &mut Vec<u8>,
    ) {
        for (name, value) in entries {
            wire::encode_nested_field(number, out, |out| {
                wire::encode_bytes_field(1, name.as_bytes(), out);
                self.member(value, 2, kind, out);
            });
        }
    }

    /// One member; zero values are left out, as proto3 has it.
    fn member(&self, value: &Value, number: u32, kind: &str, out: &mut Vec<u8>) {
        if let Some(kind) = kind.strip_prefix('[').and_then(|k| k.strip_suffix(']')) {
            for item in value.as_array().into_iter().flatten() {
                self.member(item, number, kind, out);
            }
            return;
        }
        if let Some(kind) = kind.strip_prefix('{').and_then(|k| k.strip_suffix('}')) {
            let empty = Map::new();
            let entries = value.as_object().unwrap_or(&empty).iter();
            return wire::encode_nested_field(number, out, |out| self.named(entries, 1, kind, out));
        }
        match kind {
            "s" => match value.as_str() {
                Some(text) if !text.is_empty() => wire::encode_bytes_field(number, text.as_bytes(), out),
                _ => {}
            },
            "b" if value.as_bool() == Some(true) => wire::encode_varint_field(number, 1, out),
            "i" => match value.as_i64() {
                Some(n) if n != 0 => wire::encode_varint_field(number, n as u64, out),
                _ => {}
            },
            "d" => match value.as_f64() {
                Some(f) if f != 0.0 => wire::encode_double_field(number, f, out),
                _ => {}
            },
            "b" => {}
            "a" => {
                let mut text = Vec::new();
                yaml::encode_value(value, &mut text);
                wire::encode_nested_field(number, out, |out| wire::encode_bytes_field(2, &text, out));
            }
            name => wire::encode_nested_field(number, out, |out| self.message(value, name, out)),
        }
    }

    /// Messages that are one thing or another.
    fn alternative(&self, value: &Value, name: &str, out: &mut Vec<u8>) {
        let is_reference = value.get("$ref").is_some();
        let schema = if self.dialect == Dialect::V2 { "Schema" } else { "SchemaOrReference" };
        let (number, kind) = match name {
            "TypeItem" | "StringArray" => {
                let list = Value::Array(vec![value.clone()]);
                let texts = if value.is_array() { value } else { &list };
                return self.member(texts, 1, "[s]", out);
            }
            "AdditionalPropertiesItem" => match value {
                // One of two is set even if it is false.
                Value::Bool(b) => return wire::encode_varint_field(2, u64::from(*b), out),
                _ => (1, schema),
            },
            "DefaultType" => match value {
                Value::Number(n) => return wire::encode_double_field(1, n.as_f64().unwrap_or_default(), out),
                Value::Bool(b) => return wire::encode_varint_field(2, u64::from(*b), out),
                Value::String(text) => return wire::encode_bytes_field(3, text.as_bytes(), out),
                // Other defaults have no form.
                _ => return,
            },
            "ItemsItem" | "SchemaItem" => (1, schema),
            "ParametersItem" | "ResponseValue" if is_reference => (2, "JsonReference"),
            "ParametersItem" => (1, "Parameter"),
            "ResponseValue" => (1, "Response"),
            "Parameter" if value["in"] == "body" => (1, "BodyParameter"),
            "Parameter" => (2, "NonBodyParameter"),
            "NonBodyParameter" if value["in"] == "path" => (4, "PathParameter"),
            "NonBodyParameter" => (3, "QueryParameter"),
            "SecurityDefinition" => (2, "ApiKeySecurity"),
            _ if is_reference => (2, "JsonReference"),
            _ => match name.strip_suffix("OrReference") {
                Some("Schema") => (1, "Schema"),
                Some("Parameter") => (1, "Parameter"),
                Some("RequestBody") => (1, "RequestBody"),
                Some("Response") => (1, "Response"),
                Some("SecurityScheme") => (1, "SecurityScheme"),
                _ => return,
            },
        };
        self.member(value, number, kind, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn members_go_under_their_numbers() {
        let document = json!({"swagger": "2.0", "definitions": {"a": {"type": "string", "x-k": 1}}});
        let schema = b"\xb2\x01\x08\x0a\x06string\xfa\x01\x0b\x0a\x03x-k\x12\x04\x12\x021\n";
        let mut named = b"\x0a\x01a\x12".to_vec();
        named.push(schema.len() as u8);
        named.extend_from_slice(schema);
        let mut want = b"\x0a\x032.0\x4a".to_vec();
        want.push(named.len() as u8 + 2);
        want.push(0x0a);
        want.push(named.len() as u8);
        want.extend_from_slice(&named);
        assert_eq!(encode(&document, Dialect::V2), want);
    }

    #[test]
    fn alternatives_are_told_apart() {
        let document = json!({"paths": {"/a": {"parameters": [{"in": "path", "name": "n"}, {"$ref": "r"}]}}});
        // paths(8) > path(2) > value(2) > parameters(9) > parameter(1) > nonBody(2) > path(4) > in(2), name(4)
        let parameters = b"\x4a\x0f\x0a\x0d\x12\x0b\x22\x09\x12\x04path\x22\x01n\x4a\x05\x12\x03\x0a\x01r";
        let want = [b"\x42\x20\x12\x1e\x0a\x02/a\x12\x18".as_slice(), parameters].concat();
        assert_eq!(encode(&document, Dialect::V2), want);
    }
}
