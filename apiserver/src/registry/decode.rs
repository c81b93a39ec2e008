//! Request bodies to trees (upstream: `handlers/rest.go` `transformDecodeError`, `negotiation.NegotiateInputSerializer`).

use super::options::{DeleteOptions, FieldValidation, WriteOptions};
use super::pipeline::{Call, Shape};
use coxswain_api::codec::{self, DecodeError, Decoded, Format, TypeMeta};
use coxswain_api::features::Feature;
use coxswain_api::field::{Error, Path, go_quote};
use coxswain_api::schema::StructRef;
use coxswain_api::{Status, Value, defaults, schema};
use http::header::CONTENT_TYPE;

/// Bodies may have this many bytes; more is 413.
pub const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// The refusal of a longer body.
pub fn body_too_large() -> Status {
    Status::too_large(format!("limit is {BODY_BYTES_MAX}"))
}

/// What upstream calls the place where kinds are registered; part of a message that clients see.
fn scheme_of(call: &Call) -> &'static str {
    match call.group() {
        "apiregistration.k8s.io" => "k8s.io/kube-aggregator/pkg/apiserver/scheme/scheme.go:28",
        "apiextensions.k8s.io" => "k8s.io/apiextensions-apiserver/pkg/apiserver/scheme/scheme.go:36",
        _ => "pkg/api/legacyscheme/scheme.go:30",
    }
}

/// The body as a tree of the shape, canonical and with defaults, `apiVersion` and `kind` set.
pub(super) fn object(call: &Call, options: &WriteOptions, shape: Shape<'_>) -> Result<Value, Status> {
    let format = body_format(call)?;
    let body = &call.body;
    let unrecognized = |error: &dyn std::fmt::Display| {
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): {error} ({})",
            shape.kind,
            summary(body)
        ))
    };
    let stated = type_meta(body, format).map_err(|e| unrecognized(&e))?;
    if stated.group_version().is_none() {
        return Err(unrecognized(&format_args!("unexpected GroupVersion string: {}", stated.api_version)));
    }
    let (group, version) = stated.group_version().unwrap_or(("", &stated.api_version));
    let (group, version) =
        if stated.api_version.is_empty() { (&*shape.version.group, &*shape.version.version) } else { (group, version) };
    let kind = if stated.kind.is_empty() { shape.kind } else { &stated.kind };
    let refused = |error: &dyn std::fmt::Display| {
        let version = go_quote(version);
        Status::bad_request(format!("{kind} in version {version} cannot be handled as a {}: {error}", shape.kind))
    };
    // Evictions were served in an older version, which clients still send.
    let old_eviction = (group, version, kind, shape.kind) == ("policy", "v1beta1", "Eviction", "Eviction");
    let known = old_eviction || (group, version, kind) == (&shape.version.group, &shape.version.version, shape.kind);
    let unstated = stated.api_version.is_empty() && !stated.kind.is_empty();
    if (!known || unstated) && call.served.custom && call.is_whole() {
        return Err(wrong_custom(call, options, format, &stated, kind, shape));
    }
    if !known {
        return Err(wrong_kind(call, group, version, kind, shape, &refused));
    }
    let body: &[u8] = if format == Format::Json && is_null(body) { b"{}" } else { body };
    let decoded = of_shape(call, body, format, shape).map_err(|e| match e {
        DecodeError::Syntax(_) => unrecognized(&e),
        DecodeError::Value(_) => refused(&e),
    })?;
    let mut value = checked(call, options, decoded, &refused)?;
    stamp(&mut value, shape);
    set_defaults(call, &mut value, shape);
    Ok(value)
}

fn checked(
    call: &Call,
    options: &WriteOptions,
    decoded: Decoded,
    refused: &dyn Fn(&dyn std::fmt::Display) -> Status,
) -> Result<Value, Status> {
    match options.field_validation {
        FieldValidation::Strict if !decoded.strict_errors.is_empty() => {
            Err(refused(&format_args!("strict decoding error: {}", decoded.strict_errors.join(", "))))
        }
        FieldValidation::Warn => {
            warn(call, decoded.strict_errors);
            Ok(decoded.value)
        }
        _ => Ok(decoded.value),
    }
}

/// What strict decoding found as warnings: of the list that YAML's reader makes, each line is one.
pub(super) fn warn(call: &Call, strict_errors: Vec<String>) {
    for error in strict_errors {
        match error.strip_prefix(YAML_ERRORS) {
            Some(lines) => lines.lines().for_each(|line| call.ctx.warnings.add(line.trim().to_owned())),
            None => call.ctx.warnings.add(error),
        }
    }
}

/// How the errors of YAML's reader begin.
const YAML_ERRORS: &str = "yaml: unmarshal errors:\n";

/// Why a tree that names another kind or version than is expected cannot be read as that; what it leaves out counts as right.
pub(super) fn other_kind(call: &Call, tree: &Value, shape: Shape<'_>) -> Option<String> {
    let text = |field: &str| tree.get(field).and_then(Value::as_str).unwrap_or_default();
    let stated = TypeMeta { api_version: text("apiVersion").to_owned(), kind: text("kind").to_owned() };
    let (group, version) = match stated.group_version() {
        _ if stated.api_version.is_empty() => (&*shape.version.group, &*shape.version.version),
        Some(stated) => stated,
        None => return Some(format!("unexpected GroupVersion string: {}", stated.api_version)),
    };
    let kind = if stated.kind.is_empty() { shape.kind } else { &stated.kind };
    let known = (group, version, kind) == (&*shape.version.group, &*shape.version.version, shape.kind);
    (!known).then(|| unknown_conversion(call, group, version, kind, shape))
}

/// One that exists cannot be converted, another is not known.
fn unknown_conversion(call: &Call, group: &str, version: &str, kind: &str, shape: Shape<'_>) -> String {
    if schema::builtin().kind(group, version, kind).is_none() {
        let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        return format!(
            "no kind {} is registered for version {} in scheme {}",
            go_quote(kind),
            go_quote(&api_version),
            go_quote(scheme_of(call))
        );
    }
    // Upstream prints Go's types: the package of the external type is its version, that of the internal one its group.
    let package = shape.version.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
    format!("converting ({version}.{kind}) to ({package}.{}): unknown conversion", shape.kind)
}

/// A body of a kind that is not expected here.
fn wrong_kind(
    call: &Call,
    group: &str,
    version: &str,
    kind: &str,
    shape: Shape<'_>,
    refused: &dyn Fn(&dyn std::fmt::Display) -> Status,
) -> Status {
    if kind == shape.kind && schema::builtin().kind(group, version, kind).is_some() {
        let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        return Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            shape.version.api_version()
        ));
    }
    refused(&unknown_conversion(call, group, version, kind, shape))
}

/// A custom object of another kind or version: its decoder takes anything, and what it is comes out later.
fn wrong_custom(
    call: &Call,
    options: &WriteOptions,
    format: Format,
    stated: &TypeMeta,
    kind: &str,
    shape: Shape<'_>,
) -> Status {
    let tree = match untyped(&call.body, format) {
        Ok(decoded) => decoded.value,
        Err(error) => return Status::bad_request(error.to_string()),
    };
    if stated.api_version != shape.version.api_version() {
        // No schema knows this version, so that every field of its own is unknown.
        if options.field_validation == FieldValidation::Warn {
            let fields = tree.as_object().into_iter().flatten().map(|(name, _)| name);
            for name in fields.filter(|n| !matches!(n.as_str(), "apiVersion" | "kind" | "metadata")) {
                call.ctx.warnings.add(format!("unknown field {}", go_quote(name)));
            }
        }
        return Status::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({})",
            stated.api_version,
            shape.version.api_version()
        ));
    }
    let error = Error::invalid(&Path::new("kind"), kind, format!("must be {}", shape.kind));
    let name = super::metadata::text(&tree, "name");
    Status::invalid(&shape.version.group, kind, name, &[error])
}

/// `apiVersion` and `kind` as they are in this version.
pub(super) fn stamp(value: &mut Value, shape: Shape<'_>) {
    if let Some(map) = value.as_object_mut() {
        map.insert("apiVersion".into(), shape.version.api_version().into());
        map.insert("kind".into(), shape.kind.into());
    }
}

/// The schema's own defaults and those of the resource.
pub(super) fn set_defaults(call: &Call, value: &mut Value, shape: Shape<'_>) {
    defaults::apply(value, shape.schema);
    if call.is_whole() {
        call.strategy().set_defaults(value);
    }
}

/// The options of a delete: the body if there is one, else the query.
pub(super) fn delete_options(call: &Call) -> Result<DeleteOptions, Status> {
    if call.body.is_empty() {
        return DeleteOptions::of_query(&call.query);
    }
    let format = body_format(call)?;
    if format == Format::Json && is_null(&call.body) {
        return DeleteOptions::of_tree(&Value::Object(Default::default()));
    }
    let stated = type_meta(&call.body, format).map_err(|e| Status::bad_request(e.to_string()))?;
    if !matches!(stated.kind.as_str(), "" | "DeleteOptions") {
        let version = if stated.api_version.is_empty() { "v1" } else { &stated.api_version };
        return Err(Status::bad_request(format!(
            "no kind {} is registered for version {} in scheme \
             \"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27\"",
            go_quote(&stated.kind),
            go_quote(version)
        )));
    }
    let schema = delete_options_schema();
    let decoded = typed(&call.body, format, schema).map_err(|e| Status::bad_request(e.to_string()))?;
    DeleteOptions::of_tree(&decoded.value)
}

/// Go's decoder takes null for an object without fields.
fn is_null(body: &[u8]) -> bool {
    body.trim_ascii() == b"null"
}

fn delete_options_schema() -> &'static StructRef {
    schema::builtin().get("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions").expect("the schema has DeleteOptions")
}

/// The kind and version that a body names. The error is upstream's whole sentence.
fn type_meta(body: &[u8], format: Format) -> Result<TypeMeta, String> {
    let prefixed = |e: DecodeError| format!("couldn't get version/kind; json parse error: {e}");
    match format {
        Format::Yaml => {
            codec::json::interpret(&codec::yaml::to_json(body).map_err(|e| e.to_string())?).map_err(prefixed)
        }
        Format::Protobuf => codec::protobuf::open(body).map(|e| e.type_meta).map_err(|e| e.to_string()),
        Format::Cbor => {
            codec::cbor::interpret(body).map_err(|e| format!("unable to determine group/version/kind: {e}"))
        }
        Format::Json => codec::json::interpret(body).map_err(prefixed),
    }
}

/// A body of a known type.
fn typed(body: &[u8], format: Format, schema: &StructRef) -> Result<Decoded, DecodeError> {
    match format {
        Format::Yaml => codec::yaml::decode(body, schema),
        Format::Protobuf => codec::protobuf::decode(&codec::protobuf::open(body)?, schema),
        Format::Cbor => codec::cbor::decode(body, schema),
        Format::Json => codec::json::decode(body, schema),
    }
}

/// A body of the shape of this call: custom resources are read as they are and pruned by their own schema.
fn of_shape(call: &Call, body: &[u8], format: Format, shape: Shape<'_>) -> Result<Decoded, DecodeError> {
    match call.strategy().structural().filter(|_| call.is_whole()) {
        Some(structural) => {
            let mut decoded = untyped(body, format)?;
            let unknown = structural.prune(&mut decoded.value)?;
            decoded.strict_errors.extend(unknown.into_iter().map(|path| format!("unknown field {}", go_quote(&path))));
            Ok(decoded)
        }
        None => typed(body, format, shape.schema),
    }
}

/// A document of any shape.
pub(super) fn untyped(body: &[u8], format: Format) -> Result<Decoded, DecodeError> {
    match format {
        Format::Yaml => codec::yaml::decode_any(body),
        // A key that comes twice is no matter of strictness there.
        Format::Cbor => Ok(Decoded { value: codec::cbor::decode_any(body)?, strict_errors: Vec::new() }),
        _ => codec::json::decode_any(body),
    }
}

/// The format that the Content-Type names; JSON if it names none.
pub(super) fn body_format(call: &Call) -> Result<Format, Status> {
    let header = call.header(CONTENT_TYPE);
    let media = header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let format = if media.is_empty() { Some(Format::Json) } else { Format::of_media_type(&media) };
    match format {
        // Custom resources have no protobuf form.
        Some(Format::Protobuf) if call.served.custom => Err(unsupported(call)),
        Some(Format::Cbor) if !Feature::CBORServingAndStorage.enabled() => Err(unsupported(call)),
        None => Err(unsupported(call)),
        Some(format) => Ok(format),
    }
}

fn unsupported(call: &Call) -> Status {
    let protobuf = if call.served.custom { "" } else { ", application/vnd.kubernetes.protobuf" };
    let cbor = if Feature::CBORServingAndStorage.enabled() { ", application/cbor" } else { "" };
    Status::new(
        415,
        "UnsupportedMediaType",
        format!(
            "the body of the request was in an unknown format - accepted media types include: application/json, \
             application/yaml{protobuf}{cbor}"
        ),
    )
}

/// The beginning of a body, as a message shows it.
fn summary(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let more = if body.len() > SHOWN { " ..." } else { "" };
    let shown = &body[..body.len().min(SHOWN)];
    match body.first() {
        None => "<empty>".into(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(shown)),
        Some(_) => shown.iter().map(|b| format!("{b:02x}")).collect::<String>() + more,
    }
}
