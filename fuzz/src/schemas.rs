//! Schemas of custom resources: reading them, checking them, and what they do to objects.

use coxswain_api::codec::json;
use coxswain_api::field::{ErrorList, Path};
use coxswain_api::structural::{self, Structural};
use coxswain_api::{apply, defaults};

pub(crate) fn structural_schema(bytes: &[u8]) {
    let at = bytes.iter().position(|b| *b == b'|').unwrap_or(bytes.len());
    let (schema, rest) = bytes.split_at(at);
    let Ok(schema) = json::decode_any(schema) else { return };
    let none = structural::Asks { rules: &|_, _| ErrorList::new(), metadata: &|_, _| ErrorList::new() };
    let found = structural::check(&schema.value, &Path::new("openAPIV3Schema"), &none);
    let refused = !found.is_structural() || !found.parts.is_empty();
    let parsed = Structural::parse(&schema.value);
    let typed = parsed.to_struct();
    if refused {
        return;
    }
    let Ok(object) = json::decode_any(rest.strip_prefix(b"|").unwrap_or(rest)) else { return };
    let mut object = object.value;
    #[cfg(feature = "server")]
    crate::requests::serve(&schema.value, &object, &coxswain_api::json!({}));
    if !object.is_object() || parsed.prune(&mut object).is_err() {
        return;
    }
    let once = object.clone();
    assert!(parsed.prune(&mut object).is_ok_and(|dropped| dropped.is_empty()), "pruning finds more the second time");
    assert_eq!(object, once, "pruning changes something the second time");
    defaults::apply(&mut object, &typed);
    let once = object.clone();
    defaults::apply(&mut object, &typed);
    assert_eq!(object, once, "defaults change something the second time");
    parsed.drop_nulls(&mut object);
    let _ =
        (parsed.validate(&object), parsed.validate_lists(&object), parsed.validate_embedded(&object, none.metadata));
    if apply::validate(&object, &typed).is_empty() {
        let fields = apply::to_field_set(&object, &typed);
        let merged = apply::merge(&object, &object, &typed);
        assert_eq!(merged.ok().as_ref(), Some(&object), "an object merged into itself changes");
        let _ = apply::remove(&object, &fields, &typed);
    }
}
