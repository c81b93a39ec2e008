//! The sources of persistent volumes and the spec of claims, as upstream's internal types have them.

use super::{Member, NONE, OBJECT_REFERENCE, Shape, TEXT, ZERO};

const fn text(there: &'static str, here: &'static str) -> Member {
    Member(there, here, TEXT, Shape::Plain)
}

const fn number(there: &'static str, here: &'static str) -> Member {
    Member(there, here, ZERO, Shape::Plain)
}

const fn flag(there: &'static str, here: &'static str) -> Member {
    Member(there, here, "false", Shape::Plain)
}

const fn pointer(there: &'static str, here: &'static str) -> Member {
    Member(there, here, NONE, Shape::Plain)
}

const SECRET: &[Member] = &[text("Name", "name"), text("Namespace", "namespace")];

const fn secret(there: &'static str, here: &'static str) -> Member {
    source(there, here, SECRET)
}

const fn object(there: &'static str, here: &'static str) -> Member {
    Member(there, here, NONE, OBJECT_REFERENCE)
}

const fn source(there: &'static str, here: &'static str, members: &'static [Member]) -> Member {
    Member(there, here, NONE, Shape::Struct(members))
}

/// What a volume is made of (upstream: `core.PersistentVolumeSource`).
pub static SOURCE: Shape = Shape::Struct(&[
    source(
        "GCEPersistentDisk",
        "gcePersistentDisk",
        &[
            text("PDName", "pdName"),
            text("FSType", "fsType"),
            number("Partition", "partition"),
            flag("ReadOnly", "readOnly"),
        ],
    ),
    source(
        "AWSElasticBlockStore",
        "awsElasticBlockStore",
        &[
            text("VolumeID", "volumeID"),
            text("FSType", "fsType"),
            number("Partition", "partition"),
            flag("ReadOnly", "readOnly"),
        ],
    ),
    source("HostPath", "hostPath", &[text("Path", "path"), pointer("Type", "type")]),
    source(
        "Glusterfs",
        "glusterfs",
        &[
            text("EndpointsName", "endpoints"),
            text("Path", "path"),
            flag("ReadOnly", "readOnly"),
            pointer("EndpointsNamespace", "endpointsNamespace"),
        ],
    ),
    source("NFS", "nfs", &[text("Server", "server"), text("Path", "path"), flag("ReadOnly", "readOnly")]),
    source(
        "RBD",
        "rbd",
        &[
            pointer("CephMonitors", "monitors"),
            text("RBDImage", "image"),
            text("FSType", "fsType"),
            text("RBDPool", "pool"),
            text("RadosUser", "user"),
            text("Keyring", "keyring"),
            secret("SecretRef", "secretRef"),
            flag("ReadOnly", "readOnly"),
        ],
    ),
    source(
        "Quobyte",
        "quobyte",
        &[
            text("Registry", "registry"),
            text("Volume", "volume"),
            flag("ReadOnly", "readOnly"),
            text("User", "user"),
            text("Group", "group"),
            text("Tenant", "tenant"),
        ],
    ),
    source(
        "ISCSI",
        "iscsi",
        &[
            text("TargetPortal", "targetPortal"),
            text("IQN", "iqn"),
            number("Lun", "lun"),
            text("ISCSIInterface", "iscsiInterface"),
            text("FSType", "fsType"),
            flag("ReadOnly", "readOnly"),
            pointer("Portals", "portals"),
            flag("DiscoveryCHAPAuth", "chapAuthDiscovery"),
            flag("SessionCHAPAuth", "chapAuthSession"),
            secret("SecretRef", "secretRef"),
            pointer("InitiatorName", "initiatorName"),
        ],
    ),
    source(
        "FlexVolume",
        "flexVolume",
        &[
            text("Driver", "driver"),
            text("FSType", "fsType"),
            secret("SecretRef", "secretRef"),
            flag("ReadOnly", "readOnly"),
            pointer("Options", "options"),
        ],
    ),
    source(
        "Cinder",
        "cinder",
        &[
            text("VolumeID", "volumeID"),
            text("FSType", "fsType"),
            flag("ReadOnly", "readOnly"),
            secret("SecretRef", "secretRef"),
        ],
    ),
    source(
        "CephFS",
        "cephfs",
        &[
            pointer("Monitors", "monitors"),
            text("Path", "path"),
            text("User", "user"),
            text("SecretFile", "secretFile"),
            secret("SecretRef", "secretRef"),
            flag("ReadOnly", "readOnly"),
        ],
    ),
    source(
        "FC",
        "fc",
        &[
            pointer("TargetWWNs", "targetWWNs"),
            pointer("Lun", "lun"),
            text("FSType", "fsType"),
            flag("ReadOnly", "readOnly"),
            pointer("WWIDs", "wwids"),
        ],
    ),
    source("Flocker", "flocker", &[text("DatasetName", "datasetName"), text("DatasetUUID", "datasetUUID")]),
    source(
        "AzureFile",
        "azureFile",
        &[
            text("SecretName", "secretName"),
            text("ShareName", "shareName"),
            flag("ReadOnly", "readOnly"),
            pointer("SecretNamespace", "secretNamespace"),
        ],
    ),
    source(
        "VsphereVolume",
        "vsphereVolume",
        &[
            text("VolumePath", "volumePath"),
            text("FSType", "fsType"),
            text("StoragePolicyName", "storagePolicyName"),
            text("StoragePolicyID", "storagePolicyID"),
        ],
    ),
    source(
        "AzureDisk",
        "azureDisk",
        &[
            text("DiskName", "diskName"),
            text("DataDiskURI", "diskURI"),
            pointer("CachingMode", "cachingMode"),
            pointer("FSType", "fsType"),
            pointer("ReadOnly", "readOnly"),
            pointer("Kind", "kind"),
        ],
    ),
    source("PhotonPersistentDisk", "photonPersistentDisk", &[text("PdID", "pdID"), text("FSType", "fsType")]),
    source(
        "PortworxVolume",
        "portworxVolume",
        &[text("VolumeID", "volumeID"), text("FSType", "fsType"), flag("ReadOnly", "readOnly")],
    ),
    source(
        "ScaleIO",
        "scaleIO",
        &[
            text("Gateway", "gateway"),
            text("System", "system"),
            secret("SecretRef", "secretRef"),
            flag("SSLEnabled", "sslEnabled"),
            text("ProtectionDomain", "protectionDomain"),
            text("StoragePool", "storagePool"),
            text("StorageMode", "storageMode"),
            text("VolumeName", "volumeName"),
            text("FSType", "fsType"),
            flag("ReadOnly", "readOnly"),
        ],
    ),
    source("Local", "local", &[text("Path", "path"), pointer("FSType", "fsType")]),
    source(
        "StorageOS",
        "storageos",
        &[
            text("VolumeName", "volumeName"),
            text("VolumeNamespace", "volumeNamespace"),
            text("FSType", "fsType"),
            flag("ReadOnly", "readOnly"),
            object("SecretRef", "secretRef"),
        ],
    ),
    source(
        "CSI",
        "csi",
        &[
            text("Driver", "driver"),
            text("VolumeHandle", "volumeHandle"),
            flag("ReadOnly", "readOnly"),
            text("FSType", "fsType"),
            pointer("VolumeAttributes", "volumeAttributes"),
            secret("ControllerPublishSecretRef", "controllerPublishSecretRef"),
            secret("NodeStageSecretRef", "nodeStageSecretRef"),
            secret("NodePublishSecretRef", "nodePublishSecretRef"),
            secret("ControllerExpandSecretRef", "controllerExpandSecretRef"),
            secret("NodeExpandSecretRef", "nodeExpandSecretRef"),
        ],
    ),
]);

/// Upstream: `core.PersistentVolumeClaimSpec`.
pub static CLAIM: Shape = Shape::Struct(&[
    pointer("AccessModes", "accessModes"),
    Member("Selector", "selector", NONE, Shape::Given(&["matchLabels", "matchExpressions"])),
    Member(
        "Resources",
        "resources",
        r#"{"Limits":null,"Requests":null}"#,
        Shape::Struct(&[pointer("Limits", "limits"), pointer("Requests", "requests")]),
    ),
    text("VolumeName", "volumeName"),
    pointer("StorageClassName", "storageClassName"),
    pointer("VolumeMode", "volumeMode"),
    source("DataSource", "dataSource", &[pointer("APIGroup", "apiGroup"), text("Kind", "kind"), text("Name", "name")]),
    source(
        "DataSourceRef",
        "dataSourceRef",
        &[
            pointer("APIGroup", "apiGroup"),
            text("Kind", "kind"),
            text("Name", "name"),
            pointer("Namespace", "namespace"),
        ],
    ),
    pointer("VolumeAttributesClassName", "volumeAttributesClassName"),
]);
