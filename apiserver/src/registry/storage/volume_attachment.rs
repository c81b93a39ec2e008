//! VolumeAttachment: that a volume should be attached to a node.

use crate::registry::checks;
use crate::registry::core::persistent_volume;
use crate::registry::core::pod_spec::csi_driver_name;
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, View};

const METADATA_BYTES_MAX: usize = 256 * 1024;
const MESSAGE_BYTES_MAX: usize = 1024;

pub struct VolumeAttachments;

impl Resource for VolumeAttachments {
    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        attachment(&View::root(object), &mut errors);
        let spec = View::root(object).child("spec");
        let name = spec.child("source").child("persistentVolumeName");
        if name.exists() {
            checks::dns_subdomain(&name, &mut errors);
        }
        errors
    }

    fn validate_update(&self, ctx: &Context, object: &Value, old: &Value, _subresource: &str) -> ErrorList {
        let mut errors = self.validate(ctx, object);
        let (new, old) = (View::root(object).child("spec"), View::root(old).child("spec"));
        if !checks::same(new.value(), old.value()) {
            let error = Error::invalid(new.path(), &new, checks::IMMUTABLE);
            let source = new.child("source");
            // As upstream's internal type prints itself, which an inline volume would make very long.
            let text = |view: &View<'_>| coxswain_api::json!(view.str());
            errors.push(match source.child("inlineVolumeSpec").exists() {
                true => error,
                false => Error {
                    bad_value: Some(format!(
                        "{{\"Attacher\":{},\"Source\":{{\"PersistentVolumeName\":{},\"InlineVolumeSpec\":null}},\"NodeName\":{}}}",
                        text(&new.child("attacher")),
                        text(&source.child("persistentVolumeName")),
                        text(&new.child("nodeName"))
                    )),
                    ..error
                },
            });
        }
        errors
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: false, whole: false, whole_first: false }
    }
}

fn attachment(object: &View<'_>, errors: &mut ErrorList) {
    let (spec, status) = (object.child("spec"), object.child("status"));
    let attacher = spec.child("attacher");
    csi_driver_name(&attacher, errors);
    let source = spec.child("source");
    let (inline, name) = (source.child("inlineVolumeSpec"), source.child("persistentVolumeName"));
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (inline.exists(), name.exists()) {
        (false, false) => errors.push(Error::required(source.path(), ONE)),
        (true, true) => errors.push(Error::forbidden(source.path(), ONE)),
        (false, true) if name.is_empty() => {
            errors.push(Error::required(name.path(), "must specify non empty persistentVolumeName"));
        }
        (true, false) => persistent_volume::inline_spec(&inline, errors),
        (false, true) => {}
    }
    checks::dns_subdomain(&spec.child("nodeName"), errors);
    let metadata = status.child("attachmentMetadata");
    if metadata.entries().map(|(key, value)| key.len() + value.len()).sum::<usize>() > METADATA_BYTES_MAX {
        errors.push(Error::too_long(metadata.path(), METADATA_BYTES_MAX as i64));
    }
    for error in [status.child("attachError"), status.child("detachError")] {
        let (message, code) = (error.child("message"), error.child("errorCode"));
        if message.len() > MESSAGE_BYTES_MAX {
            // Upstream names the limit of the metadata.
            errors.push(Error::too_long(message.path(), METADATA_BYTES_MAX as i64));
        }
        if code.i64() < 0 {
            let why = format!("must be between 0 and {}, inclusive", i32::MAX);
            errors.push(Error::invalid(code.path(), code.i64(), why));
        }
    }
}
