//! The types of what policies can name (upstream: `BuildRequestType` and `BuildNamespaceType`).

use coxswain_cel::{DeclType, Type};
use std::sync::{Arc, LazyLock};

fn text() -> Arc<DeclType> {
    DeclType::plain(Type::String)
}

fn texts() -> Arc<DeclType> {
    DeclType::list_of(text())
}

static REQUEST: LazyLock<Arc<DeclType>> = LazyLock::new(|| {
    let group_version = |name, last| DeclType::object(name, [("group", text()), ("version", text()), (last, text())]);
    let kind = || group_version("kubernetes.GroupVersionKind", "kind");
    let resource = || group_version("kubernetes.GroupVersionResource", "resource");
    let user = DeclType::object(
        "kubernetes.UserInfo",
        [("username", text()), ("uid", text()), ("groups", texts()), ("extra", DeclType::map_of(texts()))],
    );
    DeclType::object(
        "kubernetes.AdmissionRequest",
        [
            ("kind", kind()),
            ("resource", resource()),
            ("subResource", text()),
            ("requestKind", kind()),
            ("requestResource", resource()),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user),
            ("dryRun", DeclType::plain(Type::Bool)),
            ("options", DeclType::plain(Type::Dyn)),
        ],
    )
});

static NAMESPACE: LazyLock<Arc<DeclType>> = LazyLock::new(|| {
    let time = || DeclType::plain(Type::Timestamp);
    let number = || DeclType::plain(Type::Int);
    let condition = DeclType::object(
        "kubernetes.NamespaceCondition",
        [("status", text()), ("type", text()), ("lastTransitionTime", time()), ("message", text()), ("reason", text())],
    );
    let status = DeclType::object(
        "kubernetes.NamespaceStatus",
        [("conditions", DeclType::list_of(condition)), ("phase", text())],
    );
    let metadata = DeclType::object(
        "kubernetes.NamespaceMetadata",
        [
            ("name", text()),
            ("generateName", text()),
            ("namespace", text()),
            ("labels", DeclType::map_of(text())),
            ("annotations", DeclType::map_of(text())),
            ("UID", text()),
            ("creationTimestamp", time()),
            ("deletionGracePeriodSeconds", number()),
            ("deletionTimestamp", time()),
            ("generation", number()),
            ("resourceVersion", text()),
            ("finalizers", texts()),
        ],
    );
    let spec = DeclType::object("kubernetes.NamespaceSpec", [("finalizers", texts())]);
    DeclType::object("kubernetes.Namespace", [("metadata", metadata), ("spec", spec), ("status", status)])
});

/// The type of a name; of objects nothing is known.
pub(super) fn type_of(name: &str) -> Type {
    match name {
        "request" => REQUEST.ty(),
        "namespaceObject" => NAMESPACE.ty(),
        "authorizer" => Type::Named("kubernetes.authorization.Authorizer"),
        "authorizer.requestResource" => Type::Named("kubernetes.authorization.ResourceCheck"),
        _ => Type::Dyn,
    }
}
