//! The schema of a kind: one type for built-in and custom resources (upstream: struct tags and markers, and
//! `structural-merge-diff`'s typed schema).
//!
//! The built-in schemas come from one table (`data/schema.tsv`, read by `schema/table.rs`; see [`builtin`]); a CustomResourceDefinition brings its own, made of the
//! same types. Codecs, defaults, patches, field sets and OpenAPI all read a schema, and nothing else knows fields by name.

mod table;

use serde_json::Value;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

pub use table::{Named, Schemas, builtin};

/// The type of a value in a tree.
#[derive(Clone, Debug)]
pub enum Type {
    Scalar(Scalar),
    Struct(StructRef),
    List(Arc<List>),
    Map(Arc<MapOf>),
    /// Anything goes, untyped: `RawExtension`, `JSON`, `x-kubernetes-preserve-unknown-fields`.
    /// Merging treats the value as schemaless data.
    Any(AnyKind),
}

/// Leaves of a tree, named by how they are encoded and made canonical.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scalar {
    String,
    Bool,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Float64,
    /// Base64 text in JSON, bytes in protobuf and CBOR.
    Bytes,
    /// A string or a number in JSON.
    IntOrString,
    /// Canonical quantity text.
    Quantity,
    /// RFC 3339 with seconds, null when zero.
    Time,
    /// RFC 3339 with six digits of a second.
    MicroTime,
    /// Go's duration text, such as `1m30s` (`metav1.Duration`).
    Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AnyKind {
    /// `runtime.RawExtension`: a whole object, or any JSON.
    RawExtension,
    /// `metav1.FieldsV1`.
    FieldsV1,
    /// `apiextensionsv1.JSON`.
    Json,
    /// `apiextensionsv1.JSONSchemaPropsOrArray`: a schema or a list of schemas, whose fields codecs know.
    SchemaOrArray,
    /// `apiextensionsv1.JSONSchemaPropsOrBool`.
    SchemaOrBool,
    /// `apiextensionsv1.JSONSchemaPropsOrStringArray`.
    SchemaOrStrings,
    /// A custom resource's value of unknown shape.
    Unknown,
}

/// A list, with what merging needs to know of it.
#[derive(Debug)]
pub struct List {
    pub element: Type,
    pub kind: ListKind,
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// Replaced as a whole; the default.
    Atomic,
    /// A set of scalars.
    Set,
    /// Elements are identified by these fields (`x-kubernetes-list-map-keys`).
    Map(Vec<Box<str>>),
}

/// A map from text to values of one type.
#[derive(Debug)]
pub struct MapOf {
    pub value: Type,
    /// `x-kubernetes-map-type: atomic`.
    pub atomic: bool,
}

/// A reference to a struct, which may be recursive (`JSONSchemaProps`). Filled exactly once.
#[derive(Clone)]
pub struct StructRef(Arc<Slot>);

#[derive(Default)]
struct Slot {
    made: OnceLock<Struct>,
    /// Makes the struct when it is first looked at; none for those that are filled.
    make: Option<Box<dyn Fn() -> Struct + Send + Sync>>,
}

impl StructRef {
    /// A reference to be filled later by [`StructRef::fill`].
    pub fn empty() -> Self {
        StructRef(Arc::default())
    }

    /// A reference to a struct that is made when it is first looked at: most custom resources never are.
    pub fn lazy(make: impl Fn() -> Struct + Send + Sync + 'static) -> Self {
        StructRef(Arc::new(Slot { made: OnceLock::new(), make: Some(Box::new(make)) }))
    }

    pub fn new(value: Struct) -> Self {
        let this = Self::empty();
        this.fill(value);
        this
    }

    /// Panics when filled twice: a schema is never changed in place.
    pub fn fill(&self, value: Struct) {
        assert!(self.0.made.set(value).is_ok(), "a struct of the schema was defined twice");
    }

    /// Whether both name the same struct of the same schema.
    pub fn same(&self, other: &StructRef) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Deref for StructRef {
    type Target = Struct;
    fn deref(&self) -> &Struct {
        self.0.made.get_or_init(|| {
            let make = self.0.make.as_ref().expect("every struct of a schema is filled before the schema is used");
            make()
        })
    }
}

impl std::fmt::Debug for StructRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The name only: types are recursive.
        write!(f, "StructRef({})", self.0.made.get().map_or("?", |s| &s.name))
    }
}

/// An object with known fields, in upstream's struct order, which is the order of encoding.
#[derive(Debug)]
pub struct Struct {
    /// Upstream's OpenAPI name such as `io.k8s.api.core.v1.PodSpec`; empty for parts of a custom resource.
    pub name: Box<str>,
    /// `x-kubernetes-map-type: atomic` (`+structType=atomic`).
    pub atomic: bool,
    /// Unknown fields are kept (`x-kubernetes-preserve-unknown-fields`).
    pub preserve_unknown: bool,
    /// Inlined embedded structs are already flattened in.
    pub fields: Vec<Field>,
    /// The type's own markers with no field here (`+union`, `+k8s:supportsSubresource=…`).
    pub markers: Vec<Box<str>>,
    by_name: HashMap<Box<str>, u16, BuildHasherDefault<NameHasher>>,
    /// The fields that a canonical tree always has.
    always: Box<[u16]>,
    reaches_default: OnceLock<bool>,
    layout: OnceLock<crate::codec::protobuf::Layout>,
}

impl Struct {
    pub fn new(name: impl Into<Box<str>>, fields: Vec<Field>) -> Self {
        let by_name = fields.iter().enumerate().map(|(i, f)| (f.name.clone(), i as u16)).collect();
        let always = (0u16..).zip(&fields).filter(|(_, f)| crate::codec::always_there(f)).map(|(i, _)| i).collect();
        Self {
            name: name.into(),
            atomic: false,
            preserve_unknown: false,
            fields,
            markers: Vec::new(),
            by_name,
            always,
            reaches_default: OnceLock::new(),
            layout: OnceLock::new(),
        }
    }

    /// Positions of the fields that a canonical tree always has.
    pub(crate) fn always(&self) -> &[u16] {
        &self.always
    }

    /// The fields by protobuf number.
    pub(crate) fn layout(&self) -> &crate::codec::protobuf::Layout {
        self.layout.get_or_init(|| crate::codec::protobuf::Layout::of(self))
    }

    /// Whether this struct or any that it holds has a default.
    pub(crate) fn reaches_default(&self) -> bool {
        *self.reaches_default.get_or_init(|| crate::defaults::any_default(self))
    }

    pub fn field(&self, name: &str) -> Option<&Field> {
        self.position(name).map(|i| &self.fields[i])
    }

    /// Where a field stands in the order of encoding.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).map(|&i| i as usize)
    }

    /// The name of the Go type, such as `PodSpec`.
    pub fn type_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// FNV-1a. The names in a table are the schema's own, few and short: nobody can make them collide by what they send.
#[derive(Debug)]
struct NameHasher(u64);

impl Default for NameHasher {
    fn default() -> Self {
        NameHasher(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// One field of a struct.
#[derive(Debug)]
pub struct Field {
    /// The JSON name.
    pub name: Box<str>,
    pub ty: Type,
    /// The Go type as the table has it, such as `*core.v1.Affinity` or `[]core.v1.Container`: it names the enums of the
    /// leaves, and messages about values of the wrong type show it. Empty for custom resources.
    pub type_name: &'static str,
    /// A struct that merging replaces as a whole in this place (`x-kubernetes-map-type: atomic` at the field).
    pub atomic: bool,
    /// A struct that is merged field by field in this place although its type is atomic.
    pub granular: bool,
    /// An empty list and none differ, as long as defaults have not been set.
    pub keeps_empty: bool,
    /// The list says that it is atomic, which it is too if it says nothing.
    pub says_list_type: bool,
    /// A Go pointer: absent and zero differ.
    pub pointer: bool,
    /// When an encoder leaves the field out.
    pub omit: Omit,
    /// `+required` or absence of `+optional`.
    pub required: bool,
    /// `null` is a value of its own (custom resources only).
    pub nullable: bool,
    /// The schema's own default (`+default`, or `default` of a CRD).
    pub default: Option<Value>,
    /// Strategic merge patch: `merge` and/or `retainKeys`, and the merge key.
    pub patch: Patch,
    /// Protobuf encoding; none for custom resources.
    pub proto: Option<Proto>,
    /// The markers with no field of their own here (`+k8s:…`, `+enum`, `+union…`, `+featureGate=…`).
    pub markers: Vec<Box<str>>,
}

impl Field {
    /// The default as OpenAPI says it: the schema's own, or the zero value that Go gives to what is always written.
    pub fn published_default(&self) -> Option<Value> {
        // Of custom resources only what their definition says is known.
        if self.default.is_some() || self.pointer || self.type_name.is_empty() {
            return self.default.clone();
        }
        match &self.ty {
            Type::Struct(_) => Some(Value::Object(Default::default())),
            Type::Scalar(scalar) if self.omit == Omit::Never => match scalar {
                Scalar::String => Some("".into()),
                Scalar::Bool => Some(false.into()),
                Scalar::Int32 | Scalar::Int64 | Scalar::Uint32 | Scalar::Uint64 | Scalar::Float64 => Some(0.into()),
                _ => None,
            },
            _ => None,
        }
    }

    /// An optional field with `omitempty` and nothing special about it.
    pub fn new(name: impl Into<Box<str>>, ty: Type) -> Self {
        Self {
            name: name.into(),
            ty,
            type_name: "",
            atomic: false,
            granular: false,
            keeps_empty: false,
            says_list_type: false,
            pointer: false,
            omit: Omit::Empty,
            required: false,
            nullable: false,
            default: None,
            patch: Patch::default(),
            proto: None,
            markers: Vec::new(),
        }
    }
}

/// When an encoder leaves a field out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Omit {
    /// Always written: a nil list as `null`, a zero number as `0`.
    Never,
    /// `omitempty`: left out when nil, zero, `""`, or an empty list or map. Structs (not pointers) are always written.
    Empty,
    /// `omitzero`: also a struct whose fields are all zero is left out.
    Zero,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    pub merge: bool,
    /// `replace`, said outright.
    pub replace: bool,
    pub retain_keys: bool,
    pub merge_key: Option<Box<str>>,
}

/// How protobuf encodes a field. The wire type and whether it repeats follow from the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proto {
    pub number: u32,
    /// The numbers of the embedded messages around the field, outermost first, zero where there is none: JSON has them
    /// flattened, protobuf does not (`Volume` holds its `VolumeSource` as message 2).
    pub via: [u32; 2],
    /// The list is a message with one repeated field (`Verbs`, `ExtraValue`).
    pub wrapped: bool,
}
