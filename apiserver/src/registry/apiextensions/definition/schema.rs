//! The schema of a version, its columns, subresources and selectable fields (upstream: the parts of
//! `pkg/apis/apiextensions/validation` that a version and a whole specification share).

use super::super::custom_resource::{check_metadata, check_path};
use super::super::rule_check;
use super::super::rules::Rules;
use super::printed;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::structural::{self, Asks, Structural};
use std::collections::HashSet;

/// What may stand at the root of a schema if the status is written on its own: it is taken out of there.
const AT_ROOT: [&str; 22] = [
    "Description",
    "Type",
    "Format",
    "Title",
    "Maximum",
    "ExclusiveMaximum",
    "Minimum",
    "ExclusiveMinimum",
    "MaxLength",
    "MinLength",
    "Pattern",
    "MaxItems",
    "MinItems",
    "UniqueItems",
    "MultipleOf",
    "Required",
    "Items",
    "Properties",
    "ExternalDocs",
    "Example",
    "XPreserveUnknownFields",
    "XValidations",
];

/// Checks `schema.openAPIV3Schema`; `path` is that of `schema`. `spare_costs` says that it was accepted before.
pub(super) fn check(schema: &Value, path: &Path, has_status: bool, spare_costs: bool, errors: &mut ErrorList) {
    let mut found = ErrorList::new();
    let at = path.child("openAPIV3Schema");
    if has_status {
        check_root(schema, &at, &mut found);
    }
    if schema["nullable"] == true {
        found.push(Error::forbidden(&at.child("nullable"), "nullable cannot be true at the root"));
    }
    let findings = structural::check(schema, &at, &Asks { rules: &ask_rules, metadata: &check_metadata });
    let reads_rules = findings.is_structural();
    found.extend(findings.structure);
    let rules = match reads_rules {
        true => rule_check::check(schema, &at, &findings.parts, spare_costs),
        false => ErrorList::new(),
    };
    found.extend(findings.parts);
    found.extend(rules);
    if let Some(why) = findings.unsupported.filter(|_| found.is_empty()) {
        found.push(Error::invalid(&at, "", why));
    }
    errors.append(&mut found);
}

fn check_root(schema: &Value, at: &Path, errors: &mut ErrorList) {
    for field in printed::fields_set(schema) {
        if field == "Type" && schema["type"] != "object" {
            let why =
                "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
            errors.push(Error::invalid(&at.child("type"), &schema["type"], why));
            return;
        }
        if !AT_ROOT.contains(&field) {
            let why = format!(
                "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
                AT_ROOT.join(" ")
            );
            let shown = printed::schema(schema);
            errors.push(Error { bad_value: Some(shown), ..Error::invalid(at, "", why) });
            return;
        }
    }
}

/// A default must satisfy the rules of its schema both as what is new and as what was there.
fn ask_rules(schema: &Structural, default: &Value) -> ErrorList {
    let Some(rules) = Rules::of(schema) else { return ErrorList::new() };
    let found = rules.check_part(schema, default, Some(default));
    if found.is_empty() { rules.check_part(schema, default, None) } else { found }
}

pub(super) fn check_columns(columns: &View<'_>, path: &Path, errors: &mut ErrorList) {
    for (n, column) in columns.items().enumerate() {
        check_column(&column, &path.index(n), errors);
    }
}

fn check_column(column: &View<'_>, path: &Path, errors: &mut ErrorList) {
    let json_path = column.child("jsonPath");
    if column.child("name").is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    }
    let kind = column.child("type");
    let what = "must be one of boolean,date,integer,number,string";
    match kind.str() {
        "" => errors.push(Error::required(&path.child("type"), what)),
        "boolean" | "date" | "integer" | "number" | "string" => {}
        _ => errors.push(Error::invalid(&path.child("type"), &kind, what)),
    }
    let format = column.child("format");
    let formats = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
    if !format.is_empty() && !formats.contains(&format.str()) {
        let what = format!("must be one of {}", formats.join(","));
        errors.push(Error::invalid(&path.child("format"), &format, what));
    }
    let at = path.child("JSONPath");
    if json_path.is_empty() {
        errors.push(Error::required(&at, ""));
    } else {
        errors.extend(check_path(json_path.str(), &at));
    }
}

/// Checks `subresources`.
pub(super) fn check_scale(subresources: &View<'_>, path: &Path, errors: &mut ErrorList) {
    let (scale, path) = (subresources.child("scale"), path.child("scale"));
    if !scale.exists() {
        return;
    }
    for (field, prefix, under) in [
        ("specReplicasPath", ".spec.", "should be a json path under .spec"),
        ("statusReplicasPath", ".status.", "should be a json path under .status"),
    ] {
        let value = scale.child_named(field);
        let at = path.child_named(field);
        if value.is_empty() {
            errors.push(Error::required(&at, ""));
        } else if let Some(error) = check_path(value.str(), &at) {
            errors.push(error);
        } else if !value.str().starts_with(prefix) {
            errors.push(Error::invalid(&at, &value, under));
        }
    }
    let selector = scale.child("labelSelectorPath");
    if !selector.is_empty() {
        let at = path.child("labelSelectorPath");
        if let Some(error) = check_path(selector.str(), &at) {
            errors.push(error);
        } else if !selector.str().starts_with(".spec.") && !selector.str().starts_with(".status.") {
            errors.push(Error::invalid(&at, &selector, "should be a json path under either .spec or .status"));
        }
    }
}

/// A version may have so many selectable fields.
const SELECTABLE_FIELDS_MAX: usize = 8;

/// Checks the fields that objects can be selected by. `may_exceed` says that there were too many before, and the same.
pub(super) fn check_selectable(
    fields: &View<'_>,
    schema: &Value,
    path: &Path,
    may_exceed: bool,
    errors: &mut ErrorList,
) {
    let mut seen = HashSet::new();
    let schema = Structural::parse(schema);
    for (i, field) in fields.items().enumerate() {
        let value = field.child("jsonPath");
        let at = path.index(i).child("jsonPath");
        if value.is_empty() {
            errors.push(Error::required(&at, ""));
            continue;
        }
        let (steps, node) = match structural::field_path(value.str(), &schema, false) {
            Ok(found) => found,
            Err(why) => {
                errors.push(Error::invalid(&at, &value, format!("is an invalid path: {why}")));
                continue;
            }
        };
        if matches!(steps.first(), Some(structural::Step::Name(name)) if name == "metadata") {
            errors.push(Error::invalid(&at, &value, "must not point to fields in metadata"));
        }
        if !matches!(&*node.ty, "string" | "integer" | "boolean") {
            errors.push(Error::invalid(
                &at,
                &value,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            ));
        }
        if !seen.insert(structural::path_text(&steps)) {
            errors.push(Error::duplicate(&at, &value));
        }
    }
    if seen.len() > SELECTABLE_FIELDS_MAX && !may_exceed {
        errors.push(Error::too_many(path, seen.len(), SELECTABLE_FIELDS_MAX as i64));
    }
}
