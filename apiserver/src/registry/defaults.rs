//! Filling in what a writer left out (upstream: the `SetDefaults_…` functions).

use coxswain_api::{Map, Value};

/// Sets a field that is absent. A field that is there, even empty, is the writer's.
pub fn set_default(object: &mut Value, name: &str, value: impl FnOnce() -> Value) {
    if let Some(map) = object.as_object_mut()
        && map.get(name).is_none_or(Value::is_null)
    {
        map.insert(name.to_owned(), value());
    }
}

/// The struct in a field, made if it is absent.
pub fn child_mut<'a>(object: &'a mut Value, name: &str) -> &'a mut Value {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let child = &mut object[name];
    if !child.is_object() {
        *child = Value::Object(Map::new());
    }
    child
}
