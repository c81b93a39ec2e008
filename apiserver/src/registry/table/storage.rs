//! Volumes, claims, classes and drivers.

use super::cells::{UNSET, age, name, strings, text_or};
use super::{AGE, Col, NAME, Printer, number, text, truth, wide};
use coxswain_api::Value;
use coxswain_api::field::View;
use jiff::Timestamp;

#[rustfmt::skip]
pub(super) static PRINTERS: &[Printer] = &[
    Printer { group: "", kind: "PersistentVolume", cells: volume, columns: &[
        NAME, text("Capacity", "@core.v1.PersistentVolumeSpec.capacity"),
        text("Access Modes", "@core.v1.PersistentVolumeSpec.accessModes"),
        text("Reclaim Policy", "@core.v1.PersistentVolumeSpec.persistentVolumeReclaimPolicy"),
        text("Status", "@core.v1.PersistentVolumeStatus.phase"), text("Claim", "@core.v1.PersistentVolumeSpec.claimRef"),
        text("StorageClass", "StorageClass of the pv"), text("VolumeAttributesClass", "VolumeAttributesClass of the pv"),
        text("Reason", "@core.v1.PersistentVolumeStatus.reason"), AGE,
        wide("VolumeMode", "@core.v1.PersistentVolumeSpec.volumeMode"),
    ] },
    Printer { group: "", kind: "PersistentVolumeClaim", cells: claim, columns: &[
        NAME, text("Status", "@core.v1.PersistentVolumeClaimStatus.phase"),
        text("Volume", "@core.v1.PersistentVolumeClaimSpec.volumeName"),
        text("Capacity", "@core.v1.PersistentVolumeClaimStatus.capacity"),
        text("Access Modes", "@core.v1.PersistentVolumeClaimStatus.accessModes"),
        text("StorageClass", "StorageClass of the pvc"), text("VolumeAttributesClass", "VolumeAttributesClass of the pvc"), AGE,
        wide("VolumeMode", "@core.v1.PersistentVolumeClaimSpec.volumeMode"),
    ] },
    Printer { group: "storage.k8s.io", kind: "CSIDriver", cells: driver, columns: &[
        NAME, truth("AttachRequired", "@storage.v1.CSIDriverSpec.attachRequired"),
        truth("PodInfoOnMount", "@storage.v1.CSIDriverSpec.podInfoOnMount"),
        truth("StorageCapacity", "@storage.v1.CSIDriverSpec.storageCapacity"),
        text("TokenRequests", "@storage.v1.CSIDriverSpec.tokenRequests"),
        truth("RequiresRepublish", "@storage.v1.CSIDriverSpec.requiresRepublish"),
        text("Modes", "@storage.v1.CSIDriverSpec.volumeLifecycleModes"), AGE,
    ] },
    Printer { group: "storage.k8s.io", kind: "CSINode", cells: |o, now| vec![name(&o), o.child("spec").child("drivers").len().into(), age(&o, now)], columns: &[
        NAME, number("Drivers", "Drivers indicates the number of CSI drivers registered on the node"), AGE,
    ] },
    Printer { group: "storage.k8s.io", kind: "CSIStorageCapacity", cells: capacity, columns: &[
        NAME, text("StorageClassName", "@storage.v1.CSIStorageCapacity.storageClassName"),
        text("Capacity", "@storage.v1.CSIStorageCapacity.capacity"),
    ] },
    Printer { group: "storage.k8s.io", kind: "StorageClass", cells: class, columns: &[
        NAME, text("Provisioner", "@storage.v1.StorageClass.provisioner"),
        text("ReclaimPolicy", "@storage.v1.StorageClass.reclaimPolicy"),
        text("VolumeBindingMode", "@storage.v1.StorageClass.volumeBindingMode"),
        text("AllowVolumeExpansion", "@storage.v1.StorageClass.allowVolumeExpansion"), AGE,
    ] },
    Printer { group: "storage.k8s.io", kind: "VolumeAttachment", cells: attachment, columns: &[
        NAME, Col("Attacher", "string", "name", "@storage.v1.VolumeAttachmentSpec.attacher", 0),
        text("PV", "@storage.v1.VolumeAttachmentSource.persistentVolumeName"),
        text("Node", "@storage.v1.VolumeAttachmentSpec.nodeName"),
        truth("Attached", "@storage.v1.VolumeAttachmentStatus.attached"), AGE,
    ] },
    Printer { group: "storage.k8s.io", kind: "VolumeAttributesClass", cells: |o, now| vec![class_name(&o), o.child("driverName").str().into(), age(&o, now)], columns: &[
        NAME, text("DriverName", "@storage.v1.VolumeAttributesClass.driverName"), AGE,
    ] },
];

/// The short forms of access modes, each once, in their own order.
fn access_modes(list: &View<'_>) -> Value {
    let short =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |mode: &str| list.items().any(|m| m.str() == mode);
    let modes: Vec<&str> = short.into_iter().filter(|(mode, _)| has(mode)).map(|(_, s)| s).collect();
    modes.join(",").into()
}

/// The class of a volume or claim: the old annotation counts before the field.
fn class_of(o: &View<'_>) -> Value {
    let annotation = o.child("metadata").child("annotations").child_named("volume.beta.kubernetes.io/storage-class");
    annotation.opt_str().unwrap_or_else(|| o.child("spec").child("storageClassName").str()).into()
}

fn phase(o: &View<'_>) -> Value {
    if o.child("metadata").child("deletionTimestamp").exists() {
        return "Terminating".into();
    }
    o.child("status").child("phase").str().into()
}

fn volume(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let spec = o.child("spec");
    let claim = spec.child("claimRef");
    let claim = if claim.exists() {
        format!("{}/{}", claim.child("namespace").str(), claim.child("name").str())
    } else {
        String::new()
    };
    vec![
        name(&o),
        text_or(&spec.child("capacity").child("storage"), "0"),
        access_modes(&spec.child("accessModes")),
        spec.child("persistentVolumeReclaimPolicy").str().into(),
        phase(&o),
        claim.into(),
        class_of(&o),
        text_or(&spec.child("volumeAttributesClassName"), UNSET),
        o.child("status").child("reason").str().into(),
        age(&o, now),
        text_or(&spec.child("volumeMode"), UNSET),
    ]
}

fn claim(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (o.child("spec"), o.child("status"));
    let bound = !spec.child("volumeName").is_empty();
    let (capacity, modes) = if bound {
        (text_or(&status.child("capacity").child("storage"), "0"), access_modes(&status.child("accessModes")))
    } else {
        ("".into(), "".into())
    };
    vec![
        name(&o),
        phase(&o),
        spec.child("volumeName").str().into(),
        capacity,
        modes,
        class_of(&o),
        text_or(&spec.child("volumeAttributesClassName"), UNSET),
        age(&o, now),
        text_or(&spec.child("volumeMode"), UNSET),
    ]
}

fn driver(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let spec = o.child("spec");
    let audiences: Vec<&str> = spec.child("tokenRequests").items().map(|t| t.child("audience").str()).collect();
    let tokens = if audiences.is_empty() { UNSET.to_owned() } else { audiences.join(",") };
    let modes = strings(&spec.child("volumeLifecycleModes"));
    let modes = if modes.is_empty() { UNSET.to_owned() } else { modes.join(",") };
    vec![
        name(&o),
        spec.child("attachRequired").opt_bool().unwrap_or(true).into(),
        spec.child("podInfoOnMount").bool().into(),
        spec.child("storageCapacity").bool().into(),
        tokens.into(),
        spec.child("requiresRepublish").bool().into(),
        modes.into(),
        age(&o, now),
    ]
}

fn capacity(o: View<'_>, _now: Timestamp) -> Vec<Value> {
    vec![name(&o), o.child("storageClassName").str().into(), text_or(&o.child("capacity"), UNSET)]
}

/// The name, marked if the class is the default one.
fn class_name(o: &View<'_>) -> Value {
    let annotations = o.child("metadata").child("annotations");
    let keys = [
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
        "volumeattributesclass.alpha.kubernetes.io/is-default-class",
    ];
    let default = keys.iter().any(|k| annotations.child_named(k).str() == "true");
    let name = o.child("metadata").child("name").str();
    if default { format!("{name} (default)").into() } else { name.into() }
}

fn class(o: View<'_>, now: Timestamp) -> Vec<Value> {
    vec![
        class_name(&o),
        o.child("provisioner").str().into(),
        text_or(&o.child("reclaimPolicy"), "Delete"),
        text_or(&o.child("volumeBindingMode"), "Immediate"),
        o.child("allowVolumeExpansion").bool().into(),
        age(&o, now),
    ]
}

fn attachment(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let spec = o.child("spec");
    vec![
        name(&o),
        spec.child("attacher").str().into(),
        spec.child("source").child("persistentVolumeName").str().into(),
        spec.child("nodeName").str().into(),
        o.child("status").child("attached").bool().into(),
        age(&o, now),
    ]
}
