//! VolumeAttachment: that a volume should be attached to a node.

use crate::registry::checks;
use crate::registry::core::pod_spec::csi_driver_name;
use crate::registry::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, View};

pub struct VolumeAttachments;

impl Resource for VolumeAttachments {
    fn validate(&self, _ctx: &Context, object: &Value) -> ErrorList {
        let (spec, mut errors) = (View::root(object).child("spec"), ErrorList::new());
        let attacher = spec.child("attacher");
        if attacher.is_empty() {
            errors.push(Error::required(attacher.path(), ""));
        } else {
            csi_driver_name(&attacher, &mut errors);
        }
        let source = spec.child("source");
        let (inline, name) = (source.child("inlineVolumeSpec"), source.child("persistentVolumeName"));
        const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
        match (inline.exists(), name.exists()) {
            (false, false) => errors.push(Error::required(source.path(), ONE)),
            (true, true) => errors.push(Error::forbidden(source.path(), ONE)),
            (false, true) if name.is_empty() => {
                errors.push(Error::required(name.path(), "must specify non empty persistentVolumeName"));
            }
            _ => {}
        }
        checks::dns_subdomain(&spec.child("nodeName"), &mut errors);
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
        MetadataChecks { update: false, whole: false }
    }
}
