//! Sources of persistent volumes: those of pods, with secrets that name their namespace (upstream: the part of
//! `ValidatePersistentVolumeSpec` about `PersistentVolumeSource`).

use super::volumes::{
    azure_disk, csi_driver_name, disk, fibre_channel, flex, flocker, host_path, iscsi_names, monitors, need, nfs,
    quobyte, storage_os_names,
};
use crate::registry::checks;
use coxswain_api::field::{Error, ErrorList, View};

/// A check of one source.
type Check = fn(&View<'_>, &mut ErrorList);

/// Field, the name upstream reports it by when it is one too many, and its check; in upstream's order.
const SOURCES: &[(&str, &str, Check)] = &[
    ("hostPath", "hostPath", host_path),
    ("gcePersistentDisk", "gcePersistentDisk", |v, e| {
        disk(&v.child("pdName"), &v.child("partition"), "persistentDisk", v, e)
    }),
    ("awsElasticBlockStore", "awsElasticBlockStore", |v, e| {
        disk(&v.child("volumeID"), &v.child("partition"), "awsElasticBlockStore", v, e)
    }),
    ("glusterfs", "glusterfs", glusterfs),
    ("flocker", "flocker", flocker),
    ("nfs", "nfs", nfs),
    ("rbd", "rbd", |v, e| {
        monitors(v, e);
        need(v, &["image"], e);
    }),
    ("quobyte", "quobyte", quobyte),
    ("cephfs", "cephFS", monitors),
    ("iscsi", "iscsi", |_, _| {}),
    ("cinder", "cinder", |v, e| {
        need(v, &["volumeID"], e);
        secret_with_namespace(v, e);
    }),
    ("fc", "fc", fibre_channel),
    ("flexVolume", "flexVolume", flex),
    ("azureFile", "azureFile", |v, e| {
        need(v, &["secretName", "shareName"], e);
        if v.child("secretNamespace").exists() {
            need(v, &["secretNamespace"], e);
        }
    }),
    ("vsphereVolume", "vsphereVolume", |v, e| need(v, &["volumePath"], e)),
    ("photonPersistentDisk", "photonPersistentDisk", |v, e| need(v, &["pdID"], e)),
    ("portworxVolume", "portworxVolume", |v, e| need(v, &["volumeID"], e)),
    ("azureDisk", "azureDisk", azure_disk),
    ("scaleIO", "scaleIO", |v, e| need(v, &["gateway", "system", "volumeName"], e)),
    ("local", "local", |_, _| {}),
    ("storageos", "storageos", |v, e| {
        storage_os_names(v, e);
        secret_with_namespace(v, e);
    }),
    ("csi", "csi", csi),
];

/// All of a persistent volume's sources, of which it has one.
pub fn all<'a>(spec: &View<'a>) -> Vec<Option<&'a coxswain_api::Value>> {
    SOURCES.iter().map(|(field, _, _)| spec.child(field).value()).collect()
}

/// The source of the volume `name`.
pub fn validate(spec: &View<'_>, name: &str, errors: &mut ErrorList) {
    let mut count = 0;
    for (field, reported, check) in SOURCES {
        let source = spec.child(field);
        if !source.exists() {
            continue;
        }
        count += 1;
        // A flexVolume is checked as if it were alone, as upstream does.
        if count > 1 && *field != "flexVolume" {
            let path = spec.path().child(reported);
            errors.push(Error::forbidden(&path, "may not specify more than 1 volume type"));
            continue;
        }
        check(&source, errors);
        match *field {
            "iscsi" => iscsi(&source, name, errors),
            "local" => local(&source, &spec.child("nodeAffinity"), errors),
            _ => {}
        }
    }
    if count == 0 {
        errors.push(Error::required(spec.path(), "must specify a volume type"));
    }
}

fn secret_with_namespace(source: &View<'_>, errors: &mut ErrorList) {
    let reference = source.child("secretRef");
    if reference.exists() {
        need(&reference, &["name", "namespace"], errors);
    }
}

fn glusterfs(source: &View<'_>, errors: &mut ErrorList) {
    need(source, &["endpoints", "path"], errors);
    let namespace = source.child("endpointsNamespace");
    match namespace.opt_str() {
        None => {}
        Some("") => {
            let why = "if the endpointnamespace is set, it must be a valid namespace name";
            errors.push(Error::invalid(namespace.path(), "", why));
        }
        Some(_) => checks::dns_label(&namespace, errors),
    }
}

fn iscsi(source: &View<'_>, name: &str, errors: &mut ErrorList) {
    need(source, &["targetPortal"], errors);
    let portal = source.child("targetPortal").str();
    if source.child("initiatorName").exists() && name.len() + 1 + portal.len() > 64 {
        let why = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is \
                   specified.";
        errors.push(Error::invalid(&source.path().child("targetportal"), portal, why));
    }
    let mut found = ErrorList::new();
    iscsi_names(source, "must be valid format", &mut found);
    let reference = source.child("secretRef");
    if reference.exists() && reference.child("name").is_empty() {
        // Upstream looks at the secret before the name of the initiator.
        let initiator = source.path().child("initiatorname").to_string();
        let at = found.iter().position(|e| e.field == initiator).unwrap_or(found.len());
        found.insert(at, Error::required(reference.child("name").path(), ""));
    }
    errors.append(&mut found);
}

fn local(source: &View<'_>, affinity: &View<'_>, errors: &mut ErrorList) {
    let path = source.child("path");
    if path.is_empty() {
        errors.push(Error::required(path.path(), ""));
    } else {
        checks::no_backsteps(&path, path.path(), errors);
    }
    if !affinity.exists() {
        errors.push(Error::required(affinity.path(), "Local volume requires node affinity"));
    }
}

fn csi(source: &View<'_>, errors: &mut ErrorList) {
    csi_driver_name(&source.child("driver"), errors);
    need(source, &["volumeHandle"], errors);
    for secret in
        ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"]
    {
        let reference = source.child(secret);
        if !reference.exists() {
            continue;
        }
        let (name, namespace) = (reference.child("name"), reference.child("namespace"));
        if name.is_empty() {
            errors.push(Error::required(name.path(), ""));
        } else {
            checks::dns_subdomain(&name, errors);
        }
        if namespace.is_empty() {
            errors.push(Error::required(namespace.path(), ""));
        } else {
            checks::dns_label(&namespace, errors);
        }
    }
}
