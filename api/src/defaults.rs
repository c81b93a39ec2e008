//! The defaults that a schema itself states (upstream: `+default=` markers and `defaulter-gen`; for custom resources
//! `apiextensions-apiserver/pkg/apiserver/schema/defaulting`).
//!
//! Defaults that depend on other fields are the resources' own (`Resource::set_defaults`).

use crate::schema::{Field, Struct, Type};
use serde_json::Value;
use std::collections::HashSet;

/// Sets every field that is unset and has a default, in every struct that is there.
pub fn apply(value: &mut Value, schema: &Struct) {
    if !schema.reaches_default() {
        return;
    }
    let Value::Object(map) = value else { return };
    for field in &schema.fields {
        // A default that is no different from absence is no default: nothing would be written of it.
        if let Some(default) = &field.default
            && !is_unset(field, default, schema)
            && map.get(&*field.name).is_none_or(|v| is_unset(field, v, schema))
        {
            map.insert(field.name.to_string(), default.clone());
        }
        if let Some(value) = map.get_mut(&*field.name) {
            apply_type(value, &field.ty);
        }
    }
}

fn apply_type(value: &mut Value, ty: &Type) {
    match (ty, &mut *value) {
        (Type::Struct(schema), _) => apply(value, schema),
        (Type::List(list), Value::Array(items)) if reaches(&list.element) => {
            items.iter_mut().for_each(|item| apply_type(item, &list.element));
        }
        (Type::Map(map), Value::Object(entries)) if reaches(&map.value) => {
            entries.iter_mut().for_each(|(_, entry)| apply_type(entry, &map.value));
        }
        _ => {}
    }
}

fn reaches(ty: &Type) -> bool {
    match ty {
        Type::Struct(schema) => schema.reaches_default(),
        Type::List(list) => reaches(&list.element),
        Type::Map(map) => reaches(&map.value),
        _ => false,
    }
}

/// Whether a value counts as not given. In Go's structs that is the zero value, or nil for a pointer; a custom resource has
/// what it says, but null where the schema allows none counts as nothing.
fn is_unset(field: &Field, value: &Value, owner: &Struct) -> bool {
    if value.is_null() {
        return !(owner.name.is_empty() && field.nullable);
    }
    if owner.name.is_empty() || field.pointer {
        return false;
    }
    match value {
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        _ => false,
    }
}

/// Whether this struct or any that it holds has a default.
pub(crate) fn any_default(schema: &Struct) -> bool {
    fn visit(schema: &Struct, seen: &mut HashSet<*const Struct>) -> bool {
        if !seen.insert(std::ptr::from_ref(schema)) {
            return false;
        }
        fn held(ty: &Type, seen: &mut HashSet<*const Struct>) -> bool {
            match ty {
                Type::Struct(schema) => visit(schema, seen),
                Type::List(list) => held(&list.element, seen),
                Type::Map(map) => held(&map.value, seen),
                _ => false,
            }
        }
        schema.fields.iter().any(|f| f.default.is_some() || held(&f.ty, seen))
    }
    visit(schema, &mut HashSet::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_are_set_where_their_struct_is() {
        let schema = crate::schema::builtin().short("core.v1.Service").unwrap();
        let mut tree = json!({"spec": {"ports": [{"port": 1}, {"port": 2, "protocol": "UDP"}, {"protocol": ""}]}});
        apply(&mut tree, schema);
        let want = json!({"spec": {"ports": [{"port": 1, "protocol": "TCP"}, {"port": 2, "protocol": "UDP"},
            {"protocol": "TCP"}]}});
        assert_eq!(tree, want);
    }
}
