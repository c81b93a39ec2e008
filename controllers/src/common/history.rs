//! Controller revisions: past templates of DaemonSets and StatefulSets, the counterpart of `pkg/controller/history`.

use std::sync::Arc;

use coxswain_client::informer::Object;
use coxswain_client::objects::{self, Deletion};
use coxswain_client::{Client, Informer, ObjectKey, Store, errors, kube};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};

use super::{claim, owners};
use crate::Context;

/// Index of revisions by the UID of their controller, or `orphan/NAMESPACE`.
const BY_OWNER: &str = "owner";

pub fn informer(context: &Context) -> Informer<ControllerRevision> {
    let revisions: Informer<ControllerRevision> = context.informers.informer();
    revisions.store().add_index(BY_OWNER, |revision| {
        vec![match owners::controller_of(&revision.metadata) {
            Some(owner) => owner.uid.clone(),
            None => format!("orphan/{}", owners::namespace(&revision.metadata)),
        }]
    });
    revisions
}

/// A template as a revision stores it: a patch that puts it in place of the present one.
pub fn data_of(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The bytes that upstream stores for a revision: keys in order, and characters that HTML gives a meaning escaped.
pub fn encode(data: &Value) -> String {
    let mut out = String::new();
    write_sorted(&mut out, data);
    out
}

fn write_sorted(out: &mut String, value: &Value) {
    match value {
        Value::Object(fields) => {
            let mut names: Vec<&String> = fields.keys().collect();
            names.sort();
            out.push('{');
            for (index, name) in names.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_sorted(out, &Value::String(name.clone()));
                out.push(':');
                write_sorted(out, &fields[name]);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_sorted(out, item);
            }
            out.push(']');
        }
        Value::String(text) => {
            let quoted = Value::String(text.clone()).to_string();
            for character in quoted.chars() {
                match character {
                    '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                        out.push_str(&format!("\\u{:04x}", character as u32));
                    }
                    _ => out.push(character),
                }
            }
        }
        other => out.push_str(&other.to_string()),
    }
}

/// The owner's revisions from the oldest on, adopting and releasing on the way.
pub async fn claim_all<O: Object>(
    client: &Client,
    store: &Store<ControllerRevision>,
    owner: &O,
    selector: &LabelSelector,
) -> Result<Vec<ControllerRevision>, kube::Error> {
    let meta = owner.meta();
    let owned = store.by_index(BY_OWNER, owners::uid(meta));
    let orphans = store.by_index(BY_OWNER, &format!("orphan/{}", owners::namespace(meta)));
    let mut claimed = Vec::new();
    for revision in owned.into_iter().chain(orphans) {
        match claim::decide(meta, Some(selector), &revision.metadata) {
            claim::Claim::Keep => claimed.push(revision),
            claim::Claim::Adopt => {
                if claim::may_adopt(client, owner).await?
                    && claim::adopt::<_, ControllerRevision>(client, owner, &revision.metadata, None).await?
                {
                    claimed.push(revision);
                }
            }
            claim::Claim::Release => {
                claim::release::<ControllerRevision>(client, owners::uid(meta), &revision.metadata, None).await?;
            }
            claim::Claim::Ignore => {}
        }
    }
    let mut revisions: Vec<ControllerRevision> = claimed.into_iter().map(Arc::unwrap_or_clone).collect();
    revisions.sort_by(|a, b| {
        let key = |revision: &ControllerRevision| {
            (revision.revision, owners::created(&revision.metadata), revision.metadata.name.clone())
        };
        key(a).cmp(&key(b))
    });
    Ok(revisions)
}

pub fn data(revision: &ControllerRevision) -> Option<&Value> {
    revision.data.as_ref().map(|data| &data.0)
}

/// Gives a revision another number.
pub async fn renumber(
    client: &Client,
    revision: &ControllerRevision,
    number: i64,
) -> Result<ControllerRevision, kube::Error> {
    let mut revision = revision.clone();
    revision.revision = number;
    objects::update(client, &revision).await
}

/// Deletes the oldest revisions that are not in use, beyond a limit.
pub async fn truncate(
    client: &Client,
    revisions: &[ControllerRevision],
    in_use: impl Fn(&ControllerRevision) -> bool,
    limit: i32,
) -> Result<(), kube::Error> {
    let unused: Vec<_> = revisions.iter().filter(|revision| !in_use(revision)).collect();
    let surplus = unused.len().saturating_sub(limit.max(0) as usize);
    for revision in unused.into_iter().take(surplus) {
        let key = ObjectKey::of(revision);
        let deleted = objects::delete::<ControllerRevision>(client, &key, &Deletion::default()).await;
        errors::ignore_not_found(deleted)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_bytes_are_those_of_gos_encoder() {
        let encoded = encode(&json!({"b": "<a&b>\u{2028}é\"", "a": [1, true, null]}));
        assert_eq!(encoded, "{\"a\":[1,true,null],\"b\":\"\\u003ca\\u0026b\\u003e\\u2028é\\\"\"}");
    }
}
