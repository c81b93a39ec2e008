//! The built-in schemas: reads `data/schema.tsv` (upstream: the Go types with their tags and markers).
//!
//! The table's first lines say what its columns mean; `data/generate.py` makes it. It is read once, on first use.

use super::{AnyKind, Field, List, ListKind, MapOf, Omit, Patch, Proto, Scalar, Struct, StructRef, Type};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

const TABLE: &str = include_str!("../../data/schema.tsv");

/// All built-in types.
pub struct Schemas {
    /// By upstream's OpenAPI name.
    by_name: HashMap<String, StructRef>,
    /// By the table's own short name, such as `core.v1.PodSpec`.
    by_short_name: HashMap<String, StructRef>,
    /// By `group/version/kind`.
    kinds: HashMap<String, StructRef>,
    /// Group and version by OpenAPI name.
    kind_of: HashMap<String, (String, String)>,
    named: HashMap<String, Named>,
}

/// A named type that is no struct, such as `core.v1.Protocol`.
pub struct Named {
    /// The Go type it stands for: `string`, `map[core.v1.ResourceName]Quantity`.
    pub underlying: &'static str,
    /// Whether OpenAPI lists its values.
    pub is_enum: bool,
    pub values: Vec<&'static str>,
}

/// The schemas of every built-in type.
pub fn builtin() -> &'static Schemas {
    static BUILTIN: OnceLock<Schemas> = OnceLock::new();
    BUILTIN.get_or_init(|| read(TABLE))
}

impl Schemas {
    /// By upstream's OpenAPI name, such as `io.k8s.api.core.v1.PodSpec`.
    pub fn get(&self, name: &str) -> Option<&StructRef> {
        self.by_name.get(name)
    }

    /// By short name, such as `core.v1.PodSpec` or `meta.v1.ObjectMeta`.
    pub fn short(&self, name: &str) -> Option<&StructRef> {
        self.by_short_name.get(name)
    }

    /// A kind of a group and version, `""` being the core group. The options, `Status`, `WatchEvent` and the documents of
    /// discovery are kinds of every group and version, as upstream registers them.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&StructRef> {
        self.kinds.get(&format!("{group}/{version}/{kind}")).or_else(|| {
            const EVERYWHERE: [&str; 13] = [
                "APIGroup",
                "APIGroupList",
                "APIResourceList",
                "APIVersions",
                "CreateOptions",
                "DeleteOptions",
                "GetOptions",
                "List",
                "ListOptions",
                "PatchOptions",
                "Status",
                "UpdateOptions",
                "WatchEvent",
            ];
            if EVERYWHERE.contains(&kind) { self.by_short_name.get(&format!("meta.v1.{kind}")) } else { None }
        })
    }

    /// The group and version of a kind, by its OpenAPI name; none if it is no kind.
    pub fn kind_of(&self, name: &str) -> Option<&(String, String)> {
        self.kind_of.get(name)
    }

    /// Every kind as group, version, kind and schema, in no order.
    pub fn kinds(&self) -> impl Iterator<Item = (&str, &str, &str, &StructRef)> {
        self.kinds.iter().map(|(gvk, schema)| {
            let mut parts = gvk.split('/');
            let mut next = || parts.next().unwrap_or_default();
            (next(), next(), next(), schema)
        })
    }

    /// Every struct with its OpenAPI name, in no order.
    pub fn structs(&self) -> impl Iterator<Item = (&str, &StructRef)> {
        self.by_name.iter().map(|(n, s)| (n.as_str(), s))
    }

    /// A named type that is no struct, by its short name.
    pub fn named(&self, name: &str) -> Option<&Named> {
        self.named.get(name)
    }
}

fn read(table: &'static str) -> Schemas {
    let mut schemas = Schemas {
        by_name: HashMap::with_capacity(2048),
        by_short_name: HashMap::with_capacity(2048),
        kinds: HashMap::with_capacity(512),
        kind_of: HashMap::with_capacity(512),
        named: HashMap::with_capacity(512),
    };
    // Types refer to each other freely: first all names, then all fields.
    let (mut package, mut prefix, mut group, mut version) = ("", "", "", "");
    for line in table.lines() {
        if let Some(rest) = line.strip_prefix("package\t") {
            let mut parts = rest.split('\t');
            package = parts.next().unwrap_or_default();
            prefix = parts.next().unwrap_or_default();
            group = parts.next().unwrap_or_default();
            version = parts.next().unwrap_or_default();
        } else if let Some(rest) = line.strip_prefix("= ") {
            let mut parts = rest.split('\t');
            let name = parts.next().unwrap_or_default();
            let underlying = parts.next().unwrap_or_default();
            let is_enum = parts.next() == Some("enum");
            let named = Named { underlying, is_enum, values: parts.collect() };
            schemas.named.insert(format!("{package}.{name}"), named);
        } else if !line.starts_with(['\t', '#']) {
            let mut words = line.split(' ');
            let name = words.next().unwrap_or_default();
            let this = StructRef::empty();
            // The documents about the API itself belong to no group.
            if words.next() == Some("kind") {
                schemas.kinds.insert(format!("{group}/{version}/{name}"), this.clone());
                schemas.kind_of.insert(format!("{prefix}.{name}"), (group.to_owned(), version.to_owned()));
            }
            schemas.by_short_name.insert(format!("{package}.{name}"), this.clone());
            schemas.by_name.insert(format!("{prefix}.{name}"), this);
        }
    }
    let mut lines = table.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(rest) = line.strip_prefix("package\t") {
            let mut parts = rest.split('\t');
            package = parts.next().unwrap_or_default();
            prefix = parts.next().unwrap_or_default();
        } else if !line.starts_with(['\t', '#']) && !line.starts_with("= ") {
            let mut words = line.split(' ');
            let name = words.next().unwrap_or_default();
            let mut fields = Vec::new();
            while let Some(line) = lines.next_if(|l| l.starts_with('\t')) {
                fields.push(field(&schemas, &line[1..]));
            }
            let mut made = Struct::new(format!("{prefix}.{name}"), fields);
            for word in words {
                match word {
                    "kind" => {}
                    "atomic" => made.atomic = true,
                    marker => made.markers.push(marker.into()),
                }
            }
            schemas.by_short_name[&format!("{package}.{name}")].fill(made);
        }
    }
    schemas
}

fn field(schemas: &Schemas, line: &'static str) -> Field {
    let mut columns = line.split('\t');
    let name = columns.next().unwrap_or_default();
    let type_name = columns.next().unwrap_or_default();
    let number = columns.next().unwrap_or("-");
    let mut made = Field::new(name, Type::Scalar(Scalar::String));
    made.type_name = type_name;
    made.omit = Omit::Never;
    let mut list = ListKind::Atomic;
    let mut wrapped = false;
    for word in columns.next().unwrap_or_default().split(' ') {
        match word {
            "e" if made.omit == Omit::Never => made.omit = Omit::Empty,
            "z" => made.omit = Omit::Zero,
            "r" => made.required = true,
            "set" => list = ListKind::Set,
            "list" => made.says_list_type = true,
            "atomic" => made.atomic = true,
            "keep" => made.keeps_empty = true,
            "merge" => made.patch.merge = true,
            "replace" => made.patch.replace = true,
            "retainKeys" => made.patch.retain_keys = true,
            "wrapped" => wrapped = true,
            _ => {
                if let Some(keys) = word.strip_prefix("keys=") {
                    list = ListKind::Map(keys.split(',').map(Into::into).collect());
                } else if let Some(key) = word.strip_prefix("by=") {
                    made.patch = Patch { merge_key: Some(key.into()), ..made.patch };
                } else if let Some(default) = word.strip_prefix("d=") {
                    made.default = Some(serde_json::from_str(default).expect("a default of the table is JSON"));
                }
            }
        }
    }
    if let Some(markers) = columns.next() {
        made.markers = markers.split(" ; ").map(Into::into).collect();
        made.granular = made.markers.iter().any(|m| &**m == "+structType=granular");
    }
    if number != "-" {
        let mut numbers = number.split('/').rev().map(|n| n.parse::<u32>().expect("a protobuf number"));
        let number = numbers.next().unwrap_or_default();
        let mut via = [0, 0];
        // Reversed: innermost first.
        let around: Vec<u32> = numbers.collect();
        for (slot, n) in via.iter_mut().zip(around.iter().rev()) {
            *slot = *n;
        }
        made.proto = Some(Proto { number, via, wrapped });
    }
    made.pointer = type_name.starts_with('*');
    made.ty = typ(schemas, type_name.trim_start_matches('*'), list, made.atomic);
    made
}

fn typ(schemas: &Schemas, name: &str, list: ListKind, atomic: bool) -> Type {
    if let Some(element) = name.strip_prefix("[]") {
        let element = typ(schemas, element.trim_start_matches('*'), ListKind::Atomic, false);
        return Type::List(Arc::new(List { element, kind: list }));
    }
    if let Some(rest) = name.strip_prefix("map[") {
        let (_, value) = rest.split_once(']').expect("a map type names its key");
        let value = typ(schemas, value.trim_start_matches('*'), ListKind::Atomic, false);
        return Type::Map(Arc::new(MapOf { value, atomic }));
    }
    let scalar = match name {
        "string" => Scalar::String,
        "bool" => Scalar::Bool,
        "int32" => Scalar::Int32,
        "int64" | "int" => Scalar::Int64,
        "uint32" => Scalar::Uint32,
        "uint64" => Scalar::Uint64,
        "float64" => Scalar::Float64,
        "bytes" => Scalar::Bytes,
        "IntOrString" => Scalar::IntOrString,
        "Quantity" => Scalar::Quantity,
        "Time" => Scalar::Time,
        "MicroTime" => Scalar::MicroTime,
        "Duration" => Scalar::Duration,
        "RawExtension" => return Type::Any(AnyKind::RawExtension),
        "FieldsV1" => return Type::Any(AnyKind::FieldsV1),
        "JSON" => return Type::Any(AnyKind::Json),
        "JSONSchemaPropsOrArray" => return Type::Any(AnyKind::SchemaOrArray),
        "JSONSchemaPropsOrBool" => return Type::Any(AnyKind::SchemaOrBool),
        "JSONSchemaPropsOrStringArray" => return Type::Any(AnyKind::SchemaOrStrings),
        _ => {
            if let Some(found) = schemas.by_short_name.get(name) {
                return Type::Struct(found.clone());
            }
            return match schemas.named.get(name) {
                Some(named) => typ(schemas, named.underlying, list, atomic),
                // Names of upstream's `types` package: all are text.
                None if name.starts_with("types.") => Type::Scalar(Scalar::String),
                None => panic!("the schema table names an unknown type {name}"),
            };
        }
    };
    Type::Scalar(scalar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_the_table_is_filled() {
        for (name, this) in builtin().structs() {
            assert_eq!(&*this.name, name);
        }
    }

    #[test]
    fn embedded_structs_are_flattened_and_keep_their_protobuf_path() {
        let rule = builtin().short("admissionregistration.v1.NamedRuleWithOperations").unwrap();
        let names: Vec<&str> = rule.fields.iter().map(|f| &*f.name).collect();
        assert_eq!(names, ["resourceNames", "operations", "apiGroups", "apiVersions", "resources", "scope"]);
        assert_eq!(rule.field("scope").unwrap().proto.unwrap().via, [2, 2]);
        assert_eq!(rule.field("operations").unwrap().proto.unwrap().via, [2, 0]);
    }

    #[test]
    fn lists_know_their_keys_and_defaults() {
        let ports = builtin().short("core.v1.ServiceSpec").unwrap().field("ports").unwrap();
        let Type::List(list) = &ports.ty else { panic!("ports are a list") };
        assert_eq!(list.kind, ListKind::Map(vec!["port".into(), "protocol".into()]));
        let Type::Struct(port) = &list.element else { panic!("ports are structs") };
        assert_eq!(port.field("protocol").unwrap().default, Some("TCP".into()));
        assert!(builtin().named("core.v1.Protocol").unwrap().is_enum);
    }
}
