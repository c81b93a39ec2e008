//! Pod specs, wherever they are embedded: defaults, validation, warnings (upstream: `SetDefaults_PodSpec`,
//! `ValidatePodSpec` and `GetWarningsForPodTemplate` with all they call).

mod affinity;
mod claims;
mod containers;
pub mod defaults;
mod environment;
mod handlers;
mod image;
mod mounts;
mod os;
pub mod persistent_sources;
mod projected;
pub mod resources;
mod security;
mod spec;
mod volumes;
mod warnings;

pub use affinity::{node_selector, node_selector_term, tolerations};
pub use claims::{ClaimLeniency, access_modes, class_name, only_labels_and_annotations, persistent_volume_claim_spec};
pub use containers::image_whitespace;
pub use resources::aggregate_requests;
pub use security::{
    APP_ARMOR_ANNOTATION, MIRROR_ANNOTATION, app_armor_of_annotation, app_armor_profile, has_deletion_cost,
    pod_annotations,
};
pub use spec::validate;
pub use volumes::csi_driver_name;
pub use warnings::{
    claim_spec as claim_warnings, for_pod, for_template, node_selector_term as node_selector_term_warnings,
};

use coxswain_api::field::{ErrorList, View};

/// What differs between a pod and a template, and what an update may keep although it is wrong by now
/// (upstream: `PodValidationOptions`).
#[derive(Clone, Copy, Default)]
pub struct Options {
    /// The spec is a Pod's own, not a template's.
    pub is_pod: bool,
    pub allow_invalid_deletion_cost: bool,
    pub allow_invalid_label_value_in_selector: bool,
    pub allow_indivisible_huge_pages: bool,
    pub allow_invalid_spread_selector: bool,
    pub allow_non_local_token_path: bool,
    pub allow_sysctls_of_host: bool,
    pub allow_invalid_node_affinity_value: bool,
    pub allow_devices_with_own_users: bool,
    pub allow_restarting_init_containers: bool,
    pub allow_any_selinux_change_policy: bool,
    pub allow_comparing_tolerations: bool,
}

impl Options {
    /// What the spec as it was (none on create) lets through. `owner` is the pod or the template, with its metadata.
    pub fn of_old(old: Option<&View<'_>>, is_pod: bool) -> Self {
        let mut options = Options { is_pod, ..Options::default() };
        let Some(old) = old else { return options };
        // Whatever policy there was, it may be changed for any other.
        let context = old.child("spec").child("securityContext");
        options.allow_any_selinux_change_policy = context.child("seLinuxChangePolicy").exists();
        let tolerations = old.child("spec").child("tolerations");
        options.allow_comparing_tolerations =
            tolerations.items().any(|t| matches!(t.child("operator").str(), "Lt" | "Gt"));
        // Each leniency is granted where the old object needs it: it is what makes the difference.
        let wrong = |options: &Options| -> usize {
            let mut errors = ErrorList::new();
            spec::validate_leniencies(old, options, &mut errors);
            errors.len()
        };
        let strict = wrong(&options);
        if strict == 0 {
            return options;
        }
        let grants: [fn(&mut Options); 9] = [
            |o| o.allow_invalid_deletion_cost = true,
            |o| o.allow_invalid_label_value_in_selector = true,
            |o| o.allow_indivisible_huge_pages = true,
            |o| o.allow_invalid_spread_selector = true,
            |o| o.allow_non_local_token_path = true,
            |o| o.allow_sysctls_of_host = true,
            |o| o.allow_invalid_node_affinity_value = true,
            |o| o.allow_devices_with_own_users = true,
            |o| o.allow_restarting_init_containers = true,
        ];
        for grant in grants {
            let mut lenient = Options { is_pod, ..Options::default() };
            grant(&mut lenient);
            if wrong(&lenient) < strict {
                grant(&mut options);
            }
        }
        options
    }
}

/// The labels and annotations of a template.
pub fn template_metadata(template: &View<'_>, options: &Options, errors: &mut ErrorList) {
    use crate::registry::metadata::{validate_annotations, validate_labels};
    // The labels of a template are reported without the `metadata` step, as upstream does.
    let metadata = template.child("metadata");
    let at = |name| View::new(metadata.child(name).value(), template.path().child(name));
    validate_labels(&at("labels"), errors);
    validate_annotations(&at("annotations"), errors);
    pod_annotations(&at("annotations"), &template.child("spec"), options, errors);
}

/// A pod template: labels, annotations and spec (upstream: `ValidatePodTemplateSpec`).
pub fn validate_template(template: &View<'_>, options: &Options, errors: &mut ErrorList) {
    template_metadata(template, options, errors);
    let (metadata, spec) = (template.child("metadata"), template.child("spec"));
    spec::validate(&spec, None, options, errors);
    annotations_agree(&metadata.child("annotations"), &spec, errors);
    if !spec.child("ephemeralContainers").is_empty() {
        let path = spec.child("ephemeralContainers");
        errors.push(coxswain_api::field::Error::forbidden(
            path.path(),
            "ephemeral containers not allowed in pod template",
        ));
    }
}

/// What a new pod's deprecated annotations and its fields both say must be the same.
pub fn annotations_agree(annotations: &View<'_>, spec: &View<'_>, errors: &mut ErrorList) {
    security::seccomp_annotations_agree(annotations, spec, errors);
    security::app_armor_annotations_agree(annotations, spec, errors);
}

/// The overhead of a runtime class, which is checked as that of a pod.
pub fn overhead(overhead: &View<'_>, errors: &mut ErrorList) {
    resources::validate_overhead(overhead, &Options::default(), errors);
}
