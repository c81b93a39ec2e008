//! `secret` volumes: as config maps, but in memory only.

use super::atomic_writer::Payload;
use super::{Context, Mounted, config_map};
use crate::pod::PodExt;
use k8s_openapi::api::core::v1::{KeyToPath, Secret, Volume};
use std::collections::BTreeMap;

pub(super) async fn set_up(context: &Context<'_>, volume: &Volume) -> Result<Mounted, String> {
    let source = volume.secret.as_ref().ok_or("not a secret")?;
    let name = source.secret_name.as_deref().unwrap_or_default();
    let payload =
        payload(context, name, source.items.as_deref(), source.optional == Some(true), source.default_mode).await?;
    super::projected::publish(context, context.volume_dir("kubernetes.io/secret", &volume.name), payload, true)
}

pub(super) async fn payload(
    context: &Context<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    default_mode: Option<i32>,
) -> Result<Payload, String> {
    let found = context.lookup.secret(context.pod.namespace(), name).await?;
    let object = match &found {
        Some(object) => object.as_ref(),
        None if optional => &Secret::default(),
        None => return Err(format!("secret {name:?} not found")),
    };
    let data: BTreeMap<&str, &[u8]> = object.data.iter().flatten().map(|(k, v)| (k.as_str(), v.0.as_slice())).collect();
    config_map::select(&data, items, optional, default_mode, |key| format!("references non-existent secret key: {key}"))
}
