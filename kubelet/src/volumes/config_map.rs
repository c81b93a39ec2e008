//! `configMap` volumes: a file for each key, replaced as a whole when the object changes.

use super::atomic_writer::{File, Payload};
use super::{Context, Mounted};
use crate::pod::PodExt;
use k8s_openapi::api::core::v1::{ConfigMap, KeyToPath, Volume};
use std::collections::BTreeMap;

pub(super) async fn set_up(context: &Context<'_>, volume: &Volume) -> Result<Mounted, String> {
    let source = volume.config_map.as_ref().ok_or("not a configMap")?;
    let payload =
        payload(context, &source.name, source.items.as_deref(), source.optional == Some(true), source.default_mode)
            .await?;
    let dir = context.volume_dir("kubernetes.io/configmap", &volume.name);
    super::projected::publish(context, dir, payload, false)
}

pub(super) async fn payload(
    context: &Context<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    default_mode: Option<i32>,
) -> Result<Payload, String> {
    let found = context.lookup.config_map(context.pod.namespace(), name).await?;
    let object = match &found {
        Some(object) => object.as_ref(),
        None if optional => &ConfigMap::default(),
        None => return Err(format!("configmap {name:?} not found")),
    };
    let mut data: BTreeMap<&str, &[u8]> = BTreeMap::new();
    data.extend(object.data.iter().flatten().map(|(k, v)| (k.as_str(), v.as_bytes())));
    data.extend(object.binary_data.iter().flatten().map(|(k, v)| (k.as_str(), v.0.as_slice())));
    select(&data, items, optional, default_mode, |key| format!("configmap references non-existent config key: {key}"))
}

/// All keys, or the chosen ones under their chosen paths.
pub(super) fn select(
    data: &BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    default_mode: Option<i32>,
    missing: impl Fn(&str) -> String,
) -> Result<Payload, String> {
    let default = default_mode.unwrap_or(0o644) as u32;
    let file = |bytes: &[u8], mode: u32| File { data: bytes.to_vec(), mode, uid: None };
    let items = items.unwrap_or_default();
    if items.is_empty() {
        return Ok(data.iter().map(|(key, bytes)| (key.to_string(), file(bytes, default))).collect());
    }
    let mut payload = Payload::new();
    for item in items {
        match data.get(item.key.as_str()) {
            Some(bytes) => {
                payload.insert(item.path.clone(), file(bytes, item.mode.map_or(default, |m| m as u32)));
            }
            None if optional => {}
            None => return Err(missing(&item.key)),
        }
    }
    Ok(payload)
}
