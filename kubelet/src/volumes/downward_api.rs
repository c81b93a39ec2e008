//! `downwardAPI` volumes: fields of the pod as files.

use super::atomic_writer::{File, Payload};
use super::{Context, Mounted};
use crate::environment;
use crate::pod::{self, PodExt};
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, Volume};

pub(super) async fn set_up(context: &Context<'_>, volume: &Volume) -> Result<Mounted, String> {
    let source = volume.downward_api.as_ref().ok_or("not a downwardAPI")?;
    let payload = payload(context, source.items.as_deref().unwrap_or_default(), source.default_mode)?;
    super::projected::publish(context, context.volume_dir("kubernetes.io/downward-api", &volume.name), payload, true)
}

pub(super) fn payload(
    context: &Context<'_>,
    items: &[DownwardAPIVolumeFile],
    default_mode: Option<i32>,
) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            environment::object_field(context.pod, &field.field_path)
                .ok_or_else(|| format!("unsupported fieldPath: {}", field.field_path))?
        } else if let Some(selector) = &item.resource_field_ref {
            let name = selector.container_name.as_deref().unwrap_or_default();
            let own = pod::long_lived_containers(context.pod.spec()).find(|c| c.container.name == name);
            let own = own.ok_or_else(|| format!("container {name} not found"))?;
            environment::resource_field(context.pod, own.container, selector, context.around)?
        } else {
            continue;
        };
        let mode = item.mode.or(default_mode).unwrap_or(0o644) as u32;
        payload.insert(item.path.clone(), File { data: text.into_bytes(), mode, uid: None });
    }
    Ok(payload)
}
