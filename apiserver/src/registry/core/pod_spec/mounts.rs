//! Mounts and block devices of containers (upstream: `ValidateVolumeMounts`, `ValidateVolumeDevices`).

use super::containers::Pod;
use crate::registry::checks;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, Path, View};
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn volume_mounts(container: &View<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let list = container.child("volumeMounts");
    let devices: BTreeMap<&str, &str> = container
        .child("volumeDevices")
        .items()
        .map(|d| (d.child("name").str(), d.child("devicePath").str()))
        .collect();
    let mut paths: BTreeSet<&str> = BTreeSet::new();
    for mount in list.items() {
        let (name, path) = (mount.child("name"), mount.child("mountPath"));
        checks::required(&name, errors);
        let volume = pod.volumes.get(name.str());
        if volume.is_none() {
            errors.push(Error::not_found(name.path(), name.str()));
        }
        checks::required(&path, errors);
        if !paths.insert(path.str()) {
            errors.push(Error::invalid(path.path(), path.str(), "must be unique"));
        }
        if devices.contains_key(name.str()) {
            errors.push(Error::invalid(name.path(), name.str(), "must not already exist in volumeDevices"));
        }
        if devices.values().any(|d| *d == path.str()) {
            errors.push(Error::invalid(path.path(), path.str(), "must not already exist as a path in volumeDevices"));
        }
        let (sub, expression) = (mount.child("subPath"), mount.child("subPathExpr"));
        // The paths of these errors lack the index, as upstream's do.
        if !sub.str().is_empty() {
            checks::descending_path(&sub, &list.path().child("subPath"), errors);
        }
        if !expression.str().is_empty() {
            if !sub.str().is_empty() {
                let why = "subPathExpr and subPath are mutually exclusive";
                errors.push(Error::invalid(expression.path(), expression.str(), why));
            }
            checks::descending_path(&expression, &list.path().child("subPathExpr"), errors);
        }
        mount_propagation(&mount, container, &list.path().child("mountPropagation"), errors);
        recursive_read_only(&mount, &list.path().child("recursiveReadOnly"), errors);
    }
}

fn mount_propagation(mount: &View<'_>, container: &View<'_>, at: &Path, errors: &mut ErrorList) {
    let mode = mount.child("mountPropagation");
    if !mode.exists() {
        return;
    }
    const MODES: &[&str] = &["Bidirectional", "HostToContainer", "None"];
    if !MODES.contains(&mode.str()) {
        errors.push(Error::not_supported(at, mode.str(), MODES));
    }
    if mode.str() == "Bidirectional" && !container.child("securityContext").child("privileged").bool() {
        let why = "Bidirectional mount propagation is available only to privileged containers";
        errors.push(Error::forbidden(at, why));
    }
}

fn recursive_read_only(mount: &View<'_>, at: &Path, errors: &mut ErrorList) {
    let mode = mount.child("recursiveReadOnly");
    match mode.opt_str() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !mount.child("readOnly").bool() {
                errors.push(Error::forbidden(at, "may only be specified when readOnly is true"));
            }
            if mount.child("mountPropagation").opt_str().is_some_and(|p| p != "None") {
                let why = "may only be specified when mountPropagation is None or not specified";
                errors.push(Error::forbidden(at, why));
            }
        }
        Some(other) => errors.push(Error::not_supported(at, other, &["Disabled", "Enabled", "IfPossible"])),
    }
}

pub(super) fn volume_devices(container: &View<'_>, pod: &Pod<'_>, errors: &mut ErrorList) {
    let mounts: BTreeMap<&str, &str> =
        container.child("volumeMounts").items().map(|m| (m.child("name").str(), m.child("mountPath").str())).collect();
    let (mut names, mut paths): (BTreeSet<&str>, BTreeSet<&str>) = Default::default();
    for device in container.child("volumeDevices").items() {
        let (name, path) = (device.child("name"), device.child("devicePath"));
        checks::required(&name, errors);
        if names.contains(name.str()) {
            errors.push(Error::invalid(name.path(), name.str(), "must be unique"));
        }
        match pod.volumes.get(name.str()) {
            None => errors.push(Error::not_found(name.path(), name.str())),
            Some(volume) if !is_claim(volume) => {
                let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(Error::invalid(name.path(), name.str(), why));
            }
            Some(_) => {}
        }
        checks::required(&path, errors);
        if paths.contains(path.str()) {
            errors.push(Error::invalid(path.path(), path.str(), "must be unique"));
        }
        if path.str().split('/').any(|p| p == "..") {
            errors.push(Error::invalid(path.path(), path.str(), "can not contain backsteps ('..')"));
        } else {
            paths.insert(path.str());
        }
        if mounts.contains_key(name.str()) {
            errors.push(Error::invalid(name.path(), name.str(), "must not already exist in volumeMounts"));
        }
        if mounts.values().any(|m| *m == path.str()) {
            errors.push(Error::invalid(path.path(), path.str(), "must not already exist as a path in volumeMounts"));
        }
        if !name.str().is_empty() {
            names.insert(name.str());
        }
    }
}

fn is_claim(volume: &Value) -> bool {
    ["persistentVolumeClaim", "ephemeral"].iter().any(|s| volume.get(*s).is_some_and(|v| !v.is_null()))
}
