//! What makes a pod the one of its number: name, host name, labels and claims.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};

use super::{Labels, REVISION_LABEL};
use crate::common::{owners, pod_control};

pub(super) fn name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", owners::name(&set.metadata))
}

/// The number of a pod whose name says that it is of this set.
pub(super) fn ordinal_of(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let digits = owners::name(&pod.metadata).strip_prefix(owners::name(&set.metadata))?.strip_prefix('-')?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

pub(super) fn pod(set: &StatefulSet, template: &PodTemplateSpec, ordinal: i32, revision: &str) -> Pod {
    let mut pod = pod_control::pod_from_template(template, &set.metadata, owners::controller_reference(set));
    let name = name(set, ordinal);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert("statefulset.kubernetes.io/pod-name".to_owned(), name.clone());
    labels.insert("apps.kubernetes.io/pod-index".to_owned(), ordinal.to_string());
    labels.insert(REVISION_LABEL.to_owned(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name.clone());
    spec.subdomain = set.spec.as_ref().and_then(|spec| spec.service_name.clone()).filter(|name| !name.is_empty());
    let claims = set.spec.iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten());
    let mut volumes: Vec<Volume> = claims
        .map(|claim| Volume {
            name: owners::name(&claim.metadata).to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: format!("{}-{name}", owners::name(&claim.metadata)),
                read_only: None,
            }),
            ..Volume::default()
        })
        .collect();
    let own = spec.volumes.take().unwrap_or_default();
    let shadowed = |volume: &Volume| volumes.iter().any(|claim| claim.name == volume.name);
    let kept: Vec<Volume> = own.into_iter().filter(|volume| !shadowed(volume)).collect();
    volumes.extend(kept);
    spec.volumes = (!volumes.is_empty()).then_some(volumes);
    pod.metadata.name = Some(name);
    pod
}

/// The claims of a number, as they are to be made.
pub(super) fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let spec = set.spec.as_ref();
    let templates = spec.into_iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten());
    templates
        .map(|template| {
            let mut claim = template.clone();
            claim.metadata.name = Some(format!("{}-{}", owners::name(&template.metadata), name(set, ordinal)));
            claim.metadata.namespace = set.metadata.namespace.clone();
            let mut labels: Labels = claim.metadata.labels.take().unwrap_or_default();
            labels.extend(spec.and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default());
            claim.metadata.labels = Some(labels);
            claim.status = None;
            let retention = spec.and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
            if retention.and_then(|policy| policy.when_deleted.as_deref()) == Some("Delete") {
                claim.metadata.owner_references = Some(vec![owners::controller_reference(set)]);
            }
            claim
        })
        .collect()
}

pub(super) fn deletes_claims_when_scaled(set: &StatefulSet) -> bool {
    let retention = set.spec.as_ref().and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    retention.and_then(|policy| policy.when_scaled.as_deref()) == Some("Delete")
}
