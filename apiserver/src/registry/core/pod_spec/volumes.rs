//! Volumes and their many sources (upstream: `ValidateVolumes`, `validateVolumeSource`).

use super::Options;
use super::claims::ephemeral;
use super::containers::pull_policy;
use super::environment::{field_reference, resource_reference};
use super::projected::projected;
use crate::registry::checks;
use coxswain_api::Value;
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::names;
use coxswain_api::quantity::Quantity;
use std::collections::{BTreeMap, BTreeSet};

/// The valid volumes of a pod by name.
pub(super) type Volumes<'a> = BTreeMap<&'a str, &'a Value>;

const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const PARTITION: &str = "must be between 1 and 255, inclusive";

/// `pod_name` is known for pods only, not for templates.
pub(super) fn validate<'a>(
    volumes: &View<'a>,
    pod_name: Option<&str>,
    options: &Options,
    errors: &mut ErrorList,
) -> Volumes<'a> {
    let pod_name = pod_name.filter(|n| !n.is_empty());
    let ephemeral: BTreeSet<String> = match pod_name {
        Some(pod) => {
            let own = volumes.items().filter(|v| v.child("ephemeral").exists());
            own.map(|v| format!("{pod}-{}", v.child("name").str())).collect()
        }
        None => BTreeSet::new(),
    };
    let mut found = Volumes::new();
    for volume in volumes.items() {
        let before = errors.len();
        let name = volume.child("name");
        source(&volume, pod_name, options, errors);
        if name.str().is_empty() {
            errors.push(Error::required(name.path(), ""));
        } else {
            checks::dns_label(&name, errors);
        }
        if found.contains_key(name.str()) {
            errors.push(Error::duplicate(name.path(), name.str()));
        }
        if errors.len() == before
            && let Some(value) = volume.value()
        {
            found.insert(name.str(), value);
        }
        let claim = volume.child("persistentVolumeClaim").child("claimName");
        if volume.child("persistentVolumeClaim").exists() && ephemeral.contains(claim.str()) {
            let why = "must not reference a PVC that gets created for an ephemeral volume";
            errors.push(Error::invalid(claim.path(), claim.str(), why));
        }
    }
    found
}

/// A check of one source, which stands at `.0`.
type Check = fn(&View<'_>, &mut ErrorList);

/// Field, the name upstream reports it by when it is one too many, and its check; in upstream's order.
const SOURCES: &[(&str, &str, Check)] = &[
    ("hostPath", "hostPath", host_path),
    ("gitRepo", "gitRepo", git_repo),
    ("gcePersistentDisk", "gcePersistentDisk", |v, e| {
        // Upstream reports the disk's own fields under another name.
        disk(&v.child("pdName"), &v.child("partition"), "persistentDisk", v, e)
    }),
    ("awsElasticBlockStore", "awsElasticBlockStore", |v, e| {
        disk(&v.child("volumeID"), &v.child("partition"), "awsElasticBlockStore", v, e)
    }),
    ("secret", "secret", |v, e| {
        need(v, &["secretName"], e);
        modes_and_items(v, e);
    }),
    ("nfs", "nfs", nfs),
    ("iscsi", "iscsi", iscsi),
    ("glusterfs", "glusterfs", |v, e| need(v, &["endpoints", "path"], e)),
    ("flocker", "flocker", flocker),
    ("persistentVolumeClaim", "persistentVolumeClaim", |v, e| need(v, &["claimName"], e)),
    ("rbd", "rbd", |v, e| {
        monitors(v, e);
        need(v, &["image"], e);
    }),
    ("cinder", "cinder", |v, e| {
        need(v, &["volumeID"], e);
        secret_reference(v, e);
    }),
    ("cephfs", "cephFS", monitors),
    ("quobyte", "quobyte", quobyte),
    ("downwardAPI", "downwarAPI", |v, e| {
        file_mode(&v.child("defaultMode"), e);
        for file in v.child("items").items() {
            downward_file(&file, v.path(), e);
        }
    }),
    ("fc", "fc", fibre_channel),
    ("flexVolume", "flexVolume", flex),
    ("configMap", "configMap", |v, e| {
        need(v, &["name"], e);
        modes_and_items(v, e);
    }),
    ("azureFile", "azureFile", |v, e| need(v, &["secretName", "shareName"], e)),
    ("vsphereVolume", "vsphereVolume", |v, e| need(v, &["volumePath"], e)),
    ("photonPersistentDisk", "photonPersistentDisk", |v, e| need(v, &["pdID"], e)),
    ("portworxVolume", "portworxVolume", |v, e| need(v, &["volumeID"], e)),
    ("azureDisk", "azureDisk", azure_disk),
    ("storageos", "storageos", storage_os),
    ("projected", "projected", |_, _| {}),
    ("scaleIO", "scaleIO", |v, e| need(v, &["gateway", "system", "volumeName"], e)),
    ("csi", "csi", csi),
    ("ephemeral", "ephemeral", |_, _| {}),
    ("image", "image", |_, _| {}),
];

fn source(volume: &View<'_>, pod_name: Option<&str>, options: &Options, errors: &mut ErrorList) {
    let mut count = 0;
    let name = volume.child("name").str();
    let empty = volume.child("emptyDir");
    if empty.exists() {
        count += 1;
        let limit = empty.child("sizeLimit");
        if Quantity::parse(limit.str()).is_ok_and(|q| q.sign() < 0) {
            errors.push(Error::forbidden(limit.path(), "SizeLimit field must be a valid resource quantity"));
        }
    }
    for (field, reported, check) in SOURCES {
        let source = volume.child(field);
        if !source.exists() {
            continue;
        }
        if count > 0 {
            let path = volume.path().child(reported);
            errors.push(Error::forbidden(&path, "may not specify more than 1 volume type"));
        } else {
            count += 1;
            check(&source, errors);
            match *field {
                "projected" => projected(&source, options, errors),
                "ephemeral" => ephemeral(&source, volume, pod_name, errors),
                "image" => {
                    if options.is_pod {
                        checks::required(&source.child("reference"), errors);
                    }
                    pull_policy(&source.child("pullPolicy"), errors);
                }
                _ => {}
            }
        }
        if *field == "iscsi" && source.child("initiatorName").exists() {
            let total = name.len() + 1 + source.child("targetPortal").len();
            if total > 64 {
                let why = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if \
                           iscsi.initiatorName is specified.";
                errors.push(Error::invalid(volume.child("name").path(), name, why));
            }
        }
    }
    if count == 0 {
        errors.push(Error::required(volume.path(), "must specify a volume type"));
    }
}

pub(super) fn need(source: &View<'_>, fields: &[&'static str], errors: &mut ErrorList) {
    for field in fields {
        checks::required(&source.child(field), errors);
    }
}

pub(super) fn secret_reference(source: &View<'_>, errors: &mut ErrorList) {
    let reference = source.child("secretRef");
    if reference.exists() {
        checks::required(&reference.child("name"), errors);
    }
}

pub(super) fn monitors(source: &View<'_>, errors: &mut ErrorList) {
    if source.child("monitors").is_empty() {
        errors.push(Error::required(source.child("monitors").path(), ""));
    }
}

pub(super) fn nfs(source: &View<'_>, errors: &mut ErrorList) {
    need(source, &["server", "path"], errors);
    let path = source.child("path");
    if !path.str().starts_with('/') {
        errors.push(Error::invalid(path.path(), path.str(), "must be an absolute path"));
    }
}

pub(super) fn host_path(source: &View<'_>, errors: &mut ErrorList) {
    let path = source.child("path");
    if path.str().is_empty() {
        errors.push(Error::required(path.path(), ""));
        return;
    }
    checks::no_backsteps(&path, path.path(), errors);
    let kind = source.child("type");
    if kind.exists() {
        const KINDS: &[&str] =
            &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
        checks::supported_value(&kind, KINDS, errors);
    }
}

fn git_repo(source: &View<'_>, errors: &mut ErrorList) {
    need(source, &["repository"], errors);
    let directory = source.child("directory");
    checks::descending_path(&directory, directory.path(), errors);
}

pub(super) fn disk(
    id: &View<'_>,
    partition: &View<'_>,
    reported: &'static str,
    source: &View<'_>,
    errors: &mut ErrorList,
) {
    // `…volumes[0].persistentDisk.pdName`: the last step is kept, the one before it replaced.
    let place = |view: &View<'_>, field: &'static str| match reported {
        "persistentDisk" => {
            let whole = source.path().to_string();
            let volume = whole.strip_suffix(".gcePersistentDisk").unwrap_or_default().to_owned();
            Path::root().child_named(&format!("{volume}.persistentDisk")).child(field)
        }
        _ => view.path().clone(),
    };
    let id_field = if reported == "persistentDisk" { "pdName" } else { "volumeID" };
    if id.str().is_empty() {
        errors.push(Error::required(&place(id, id_field), ""));
    }
    if !(0..=255).contains(&partition.i64()) {
        errors.push(Error::invalid(&place(partition, "partition"), partition.i64(), PARTITION));
    }
}

pub(super) fn file_mode(mode: &View<'_>, errors: &mut ErrorList) {
    if mode.opt_i64().is_some_and(|m| !(0..=0o777).contains(&m)) {
        errors.push(Error::invalid(mode.path(), mode.i64(), FILE_MODE));
    }
}

fn modes_and_items(source: &View<'_>, errors: &mut ErrorList) {
    file_mode(&source.child("defaultMode"), errors);
    for item in source.child("items").items() {
        key_to_path(&item, errors);
    }
}

pub(super) fn key_to_path(item: &View<'_>, errors: &mut ErrorList) {
    need(item, &["key", "path"], errors);
    let path = item.child("path");
    checks::local_path(&path, path.path(), errors);
    file_mode(&item.child("mode"), errors);
}

fn is_iscsi_name(name: &str) -> bool {
    if name.starts_with("iqn") {
        return name.match_indices("iqn.").any(|(at, found)| is_qualified(&name[at + found.len()..]));
    }
    let id = |length: usize| {
        let mut rest = name.chars().skip(4);
        name.is_ascii() && name.len() == 4 + length && rest.all(|c| c.is_ascii_alphanumeric())
    };
    name.starts_with("eui") && id(16) || name.starts_with("naa") && id(32)
}

/// `yyyy-mm.domain:anything`.
fn is_qualified(text: &str) -> bool {
    let Some((head, tail)) = text.split_once(':') else { return false };
    let Some((date, domain)) = head.split_once('.') else { return false };
    let date_good =
        date.len() == 7 && date.bytes().enumerate().all(|(i, b)| if i == 4 { b == b'-' } else { b.is_ascii_digit() });
    let in_domain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    let in_tail = |c: char| !matches!(c, ',' | ';' | '*' | '&' | '$' | '|' | ' ' | '\t' | '\n' | '\u{c}' | '\r');
    date_good && !domain.is_empty() && domain.bytes().all(in_domain) && !tail.is_empty() && tail.chars().all(in_tail)
}

fn iscsi(source: &View<'_>, errors: &mut ErrorList) {
    need(source, &["targetPortal"], errors);
    iscsi_names(source, "must be valid format starting with iqn, eui, or naa", errors);
}

/// What volumes of pods and persistent volumes have in common. `which` is said of a name of no known kind.
pub(super) fn iscsi_names(source: &View<'_>, which: &str, errors: &mut ErrorList) {
    let iqn = source.child("iqn");
    let check = |name: &str, at: &Path, errors: &mut ErrorList| {
        if !["iqn", "eui", "naa"].iter().any(|p| name.starts_with(p)) {
            errors.push(Error::invalid(at, name, which));
        } else if !is_iscsi_name(name) {
            errors.push(Error::invalid(at, name, "must be valid format"));
        }
    };
    if iqn.str().is_empty() {
        errors.push(Error::required(iqn.path(), ""));
    } else {
        check(iqn.str(), iqn.path(), errors);
    }
    let lun = source.child("lun");
    if !(0..=255).contains(&lun.i64()) {
        errors.push(Error::invalid(lun.path(), lun.i64(), names::range_error(0, 255)));
    }
    let chap = source.child("chapAuthDiscovery").bool() || source.child("chapAuthSession").bool();
    if chap && !source.child("secretRef").exists() {
        errors.push(Error::required(source.child("secretRef").path(), ""));
    }
    let initiator = source.child("initiatorName");
    if initiator.exists() {
        check(initiator.str(), &source.path().child("initiatorname"), errors);
    }
}

pub(super) fn flocker(source: &View<'_>, errors: &mut ErrorList) {
    let (name, id) = (source.child("datasetName"), source.child("datasetUUID"));
    if name.str().is_empty() && id.str().is_empty() {
        errors.push(Error::required(source.path(), "one of datasetName and datasetUUID is required"));
    }
    if !name.str().is_empty() && !id.str().is_empty() {
        let why = "datasetName and datasetUUID can not be specified simultaneously";
        errors.push(Error::invalid(source.path(), "resource", why));
    }
    if name.str().contains('/') {
        errors.push(Error::invalid(name.path(), name.str(), "must not contain '/'"));
    }
}

pub(super) fn quobyte(source: &View<'_>, errors: &mut ErrorList) {
    const WHY: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = source.child("registry");
    if registry.str().is_empty() {
        errors.push(Error::required(registry.path(), WHY));
    } else if source.child("tenant").len() >= 65 {
        let path = source.child("tenant");
        errors.push(Error::required(path.path(), "must be a UUID and may not exceed a length of 64 characters"));
    } else {
        for pair in registry.str().split(',') {
            // `[::1]:80` or `host:80`, with no further colon in a plain host.
            let good = match pair.strip_prefix('[') {
                Some(rest) => rest.split_once("]:").is_some_and(|(_, port)| !port.contains(':')),
                None => pair.matches(':').count() == 1,
            };
            if !good {
                errors.push(Error::invalid(registry.path(), registry.str(), WHY));
            }
        }
    }
    need(source, &["volume"], errors);
}

/// Fields of a pod that a volume can show, sorted.
const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// The errors are reported at the source, not at the file, as upstream's are.
pub(super) fn downward_file(file: &View<'_>, at: &Path, errors: &mut ErrorList) {
    let moved = |field: &'static str| View::new(file.child(field).value(), at.child(field));
    checks::required(&moved("path"), errors);
    checks::local_path(&file.child("path"), &at.child("path"), errors);
    let (field, resource) = (moved("fieldRef"), moved("resourceFieldRef"));
    if field.exists() {
        field_reference(&field, VOLUME_FIELDS, errors);
        if resource.exists() {
            let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
            errors.push(Error::invalid(at, "resource", why));
        }
    } else if resource.exists() {
        resource_reference(&resource, true, errors);
    } else {
        errors.push(Error::required(at, "one of fieldRef and resourceFieldRef is required"));
    }
    file_mode(&moved("mode"), errors);
}

pub(super) fn fibre_channel(source: &View<'_>, errors: &mut ErrorList) {
    let (targets, ids, lun) = (source.child("targetWWNs"), source.child("wwids"), source.child("lun"));
    if targets.is_empty() && ids.is_empty() {
        errors.push(Error::required(targets.path(), "must specify either targetWWNs or wwids, but not both"));
    }
    if !targets.is_empty() && !ids.is_empty() {
        let why = "targetWWNs and wwids can not be specified simultaneously";
        errors.push(Error::invalid(targets.path(), &targets, why));
    }
    if !targets.is_empty() {
        match lun.opt_i64() {
            None => errors.push(Error::required(lun.path(), "lun is required if targetWWNs is specified")),
            Some(n) if !(0..=255).contains(&n) => {
                errors.push(Error::invalid(lun.path(), n, names::range_error(0, 255)));
            }
            Some(_) => {}
        }
    }
}

pub(super) fn flex(source: &View<'_>, errors: &mut ErrorList) {
    need(source, &["driver"], errors);
    for (key, option) in source.child("options").entries() {
        let domain = key.split_once('/').map_or(key, |(d, _)| d);
        let domain = format!(".{}", domain.to_lowercase());
        if domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io") {
            errors.push(Error::invalid(option.path(), key, "kubernetes.io and k8s.io namespaces are reserved"));
        }
    }
}

pub(super) fn azure_disk(source: &View<'_>, errors: &mut ErrorList) {
    need(source, &["diskName", "diskURI"], errors);
    let (caching, kind, uri) = (source.child("cachingMode"), source.child("kind"), source.child("diskURI"));
    if caching.exists() {
        checks::supported_value(&caching, &["None", "ReadOnly", "ReadWrite"], errors);
    }
    if kind.exists() {
        checks::supported_value(&kind, &["Dedicated", "Managed", "Shared"], errors);
        let (start, shown) = match kind.str() {
            "Managed" => (
                "/subscriptions/",
                "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
            ),
            _ => ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"),
        };
        if !uri.str().starts_with(start) {
            errors.push(Error::not_supported(uri.path(), uri.str(), &[shown]));
        }
    }
}

fn storage_os(source: &View<'_>, errors: &mut ErrorList) {
    storage_os_names(source, errors);
    secret_reference(source, errors);
}

pub(super) fn storage_os_names(source: &View<'_>, errors: &mut ErrorList) {
    let (name, namespace) = (source.child("volumeName"), source.child("volumeNamespace"));
    if name.str().is_empty() {
        errors.push(Error::required(name.path(), ""));
    } else {
        checks::dns_label(&name, errors);
    }
    if !namespace.str().is_empty() {
        checks::dns_label(&namespace, errors);
    }
}

/// The name of a CSI driver, wherever one is given (upstream: `ValidateCSIDriverName`).
pub fn csi_driver_name(name: &View<'_>, errors: &mut ErrorList) {
    if name.str().is_empty() {
        errors.push(Error::required(name.path(), ""));
        return;
    }
    if name.str().len() > 63 {
        errors.push(Error::too_long(name.path(), 63));
    }
    for why in names::dns1123_subdomain(&name.str().to_lowercase(), false) {
        errors.push(Error::invalid(name.path(), name.str(), why));
    }
}

fn csi(source: &View<'_>, errors: &mut ErrorList) {
    csi_driver_name(&source.child("driver"), errors);
    let reference = source.child("nodePublishSecretRef");
    if reference.exists() {
        let name = reference.child("name");
        if name.str().is_empty() {
            errors.push(Error::required(name.path(), ""));
        } else {
            // Upstream reports a wrong name at the volume.
            checks::dns_subdomain(&View::new(name.value(), source.path().child("name")), errors);
        }
    }
}
