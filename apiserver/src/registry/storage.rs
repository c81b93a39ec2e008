//! The resources of `storage.k8s.io` (upstream: `pkg/registry/storage`, `pkg/apis/storage/validation`).

mod classes;
mod csi;
mod volume_attachment;

pub use classes::{StorageClasses, VolumeAttributesClasses};
pub use csi::{CsiDrivers, CsiNodes, CsiStorageCapacities};
pub use volume_attachment::VolumeAttachments;
