//! The paths of a group version and what can be done there (upstream: `endpoints/installer.go`).

use super::definitions::custom_definition_name;
use super::operations::{
    Body, CUSTOM_MEDIA, CUSTOM_PATCH_MEDIA, Content, DOCUMENT_MEDIA, META, Operation, Parameter, object_media, options,
    patch_media, pretty, watch_media,
};
use crate::catalogue::{GroupVersion, ResourceType, SubresourceType, Version};
use std::collections::BTreeMap;

/// Operations by path.
pub(super) type Routes = BTreeMap<String, Vec<Operation>>;

/// What every operation of one resource has in common.
struct Context<'a> {
    version: &'a Version,
    resource: &'a ResourceType,
    /// `AppsV1`.
    id: String,
    /// `apps_v1`.
    tag: String,
    /// `Namespaced` or nothing.
    scope: &'static str,
    custom: bool,
}

/// `rbac.authorization.k8s.io` as `rbacAuthorization`.
fn group_words(group: &str) -> String {
    if group.is_empty() {
        return "core".into();
    }
    let group = group.strip_suffix(".k8s.io").unwrap_or(group);
    let mut out = String::new();
    for (i, word) in group.split(['.', '-']).enumerate() {
        if i == 0 { out.push_str(word) } else { out.push_str(&title(word)) }
    }
    out
}

fn title(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

/// ` a Pod`, ` an Ingress`; plurals go without.
fn article(noun: &str) -> &'static str {
    let lower = noun.to_ascii_lowercase();
    if lower.ends_with('s') && !lower.ends_with("ss") {
        return " ";
    }
    if lower.starts_with(['a', 'e', 'i', 'o', 'u']) { " an " } else { " a " }
}

fn answers(codes: &[u16], content: &Content) -> Vec<(u16, Option<Content>)> {
    codes.iter().map(|&code| (code, Some(content.clone()))).collect()
}

fn meta(name: &str) -> Content {
    Content::Definition(format!("{META}{name}"))
}

impl Context<'_> {
    fn base(&self) -> String {
        let GroupVersion { group, version } = &self.version.group_version;
        if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
    }

    fn media(&self) -> &'static [&'static str] {
        if self.custom { CUSTOM_MEDIA } else { object_media() }
    }

    /// The definition of a kind.
    fn content(&self, gv: &GroupVersion, kind: &str, schema_name: &str) -> Content {
        Content::Definition(if schema_name.is_empty() {
            custom_definition_name(&gv.group, &gv.version, kind)
        } else {
            schema_name.to_owned()
        })
    }

    fn object(&self) -> Content {
        let r = self.resource;
        self.content(&r.group_version, &r.kind, &r.schema.name)
    }

    fn list(&self) -> Content {
        let r = self.resource;
        let name = if r.schema.name.is_empty() { String::new() } else { format!("{}List", r.schema.name) };
        self.content(&r.group_version, &r.list_kind, &name)
    }

    fn kind(&self) -> Option<(String, String, String)> {
        let r = self.resource;
        Some((r.group_version.group.to_string(), r.group_version.version.to_string(), r.kind.to_string()))
    }

    fn operation(&self, method: &'static str, action: &'static str, id: String, description: String) -> Operation {
        Operation {
            method,
            id,
            description,
            tag: self.tag.clone(),
            action,
            kind: self.kind(),
            parameters: vec![pretty()],
            body: None,
            produces: self.media().to_vec(),
            answers: Vec::new(),
        }
    }

    fn namespace(&self) -> Option<Parameter> {
        let described = "object name and auth scope, such as for teams and projects";
        self.resource.namespaced.then(|| Parameter::path("namespace", described))
    }
}

/// Every path of a served version.
pub(super) fn version_routes(version: &Version) -> Routes {
    let mut routes = Routes::new();
    let gv = &version.group_version;
    let words = group_words(&gv.group);
    let (tag, id) = (format!("{words}_{}", gv.version), format!("{}{}", title(&words), title(&gv.version)));
    for resource in &version.resources {
        let context = Context {
            version,
            resource,
            id: id.clone(),
            tag: tag.clone(),
            scope: if resource.namespaced { "Namespaced" } else { "" },
            custom: resource.schema.name.is_empty(),
        };
        resource_routes(&context, &mut routes);
    }
    let custom = version.resources.first().is_some_and(|r| r.schema.name.is_empty());
    let base = if gv.group.is_empty() {
        format!("/api/{}/", gv.version)
    } else {
        format!("/apis/{}/{}/", gv.group, gv.version)
    };
    if !custom {
        let id = format!("get{id}APIResources");
        routes
            .insert(base, vec![document(id, "get available resources", tag, meta("APIResourceList"), object_media())]);
    }
    routes
}

fn document(id: String, description: &str, tag: String, content: Content, media: &[&'static str]) -> Operation {
    Operation {
        method: "get",
        id,
        description: description.into(),
        tag,
        action: "",
        kind: None,
        parameters: Vec::new(),
        body: None,
        produces: media.to_vec(),
        answers: vec![(200, Some(content))],
    }
}

/// `/api/`.
pub(super) fn core_versions() -> Routes {
    let get = document(
        "getCoreAPIVersions".into(),
        "get available API versions",
        "core".into(),
        meta("APIVersions"),
        DOCUMENT_MEDIA,
    );
    Routes::from([("/api/".into(), vec![get])])
}

/// `/apis/`.
pub(super) fn groups() -> Routes {
    let get = document(
        "getAPIVersions".into(),
        "get available API versions",
        "apis".into(),
        meta("APIGroupList"),
        DOCUMENT_MEDIA,
    );
    Routes::from([("/apis/".into(), vec![get])])
}

/// `/apis/GROUP/`.
pub(super) fn group(group: &str) -> Routes {
    let words = group_words(group);
    let id = format!("get{}APIGroup", title(&words));
    let get = document(id, "get information of a group", words, meta("APIGroup"), DOCUMENT_MEDIA);
    Routes::from([(format!("/apis/{group}/"), vec![get])])
}

pub(super) fn version() -> Routes {
    let info = Content::Definition("io.k8s.apimachinery.pkg.version.Info".into());
    let description = "get the version information for this server";
    let get = document("getCodeVersion".into(), description, "version".into(), info, &["application/json"]);
    Routes::from([("/version/".into(), vec![get])])
}

pub(super) fn openid_keys() -> Routes {
    let description = "get service account issuer OpenID JSON Web Key Set (contains public token verification keys)";
    let id = "getServiceAccountIssuerOpenIDKeyset".into();
    let get = document(id, description, "openid".into(), Content::Text, &["application/jwk-set+json"]);
    Routes::from([("/openid/v1/jwks/".into(), vec![get])])
}

pub(super) fn openid_configuration() -> Routes {
    let description = "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'";
    let id = "getServiceAccountIssuerOpenIDConfiguration".into();
    let get = document(id, description, "WellKnown".into(), Content::Text, &["application/json"]);
    Routes::from([("/.well-known/openid-configuration/".into(), vec![get])])
}

fn resource_routes(c: &Context, routes: &mut Routes) {
    let r = c.resource;
    let kind = &*r.kind;
    let base = c.base();
    let within = if r.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{base}{within}/{}", r.plural);
    let item = format!("{collection}/{{name}}");
    let name = Parameter::path("name", format!("name of the {kind}"));
    let add = |routes: &mut Routes, path: String, named: Option<&Parameter>, mut operation: Operation| {
        operation.parameters.extend(named.cloned());
        if path.contains("{namespace}") {
            operation.parameters.extend(c.namespace());
        }
        operation.parameters.sort_by(|a, b| (&a.name, !a.in_path).cmp(&(&b.name, !b.in_path)));
        routes.entry(path).or_default().push(operation);
    };
    let watch_media = || if c.custom { CUSTOM_MEDIA.to_vec() } else { watch_media() };
    let list = |id: String| {
        let description = if r.allows("watch") { "list or watch objects of kind" } else { "list objects of kind" };
        let mut op = c.operation("get", "list", id, format!("{description} {kind}"));
        op.parameters.extend(options("meta.v1.ListOptions", &[]));
        op.answers = answers(&[200], &c.list());
        if r.allows("watch") || &*r.plural == "componentstatuses" {
            op.produces = watch_media();
        }
        op
    };
    let watch = |id: String, action: &'static str, description: String| {
        let mut op = c.operation("get", action, id, description);
        op.parameters.extend(options("meta.v1.ListOptions", &[]));
        op.produces = watch_media();
        op.answers = answers(&[200], &meta("WatchEvent"));
        op
    };
    let (id, scope) = (&c.id, c.scope);
    if r.allows("list") {
        add(routes, collection.clone(), None, list(format!("list{id}{scope}{kind}")));
        if r.namespaced {
            add(routes, format!("{base}/{}", r.plural), None, list(format!("list{id}{kind}ForAllNamespaces")));
        }
    }
    if r.allows("create") {
        let description = format!("create{}{kind}", article(kind));
        let mut op = c.operation("post", "post", format!("create{id}{scope}{kind}"), description);
        op.parameters.extend(options("meta.v1.CreateOptions", &[]));
        op.body = Some(Body { content: c.object(), required: true, media: &["*/*"] });
        op.answers = answers(&[200, 201, 202], &c.object());
        add(routes, collection.clone(), None, op);
    }
    if r.allows("deletecollection") {
        let description = format!("delete collection of {kind}");
        let mut op =
            c.operation("delete", "deletecollection", format!("delete{id}Collection{scope}{kind}"), description);
        op.parameters.extend(options("meta.v1.DeleteOptions", &[]));
        op.parameters.extend(options("meta.v1.ListOptions", &["watch", "allowWatchBookmarks"]));
        op.body = (!c.custom).then(|| Body { content: meta("DeleteOptions"), required: false, media: &["*/*"] });
        op.answers = answers(&[200], &meta("Status"));
        add(routes, collection.clone(), None, op);
    }
    if r.allows("get") {
        let mut op = c.operation("get", "get", format!("read{id}{scope}{kind}"), format!("read the specified {kind}"));
        if c.custom {
            op.parameters.extend(options("meta.v1.GetOptions", &[]));
        }
        op.answers = answers(&[200], &c.object());
        add(routes, item.clone(), Some(&name), op);
    }
    if r.allows("update") {
        let description = format!("replace the specified {kind}");
        let mut op = c.operation("put", "put", format!("replace{id}{scope}{kind}"), description);
        op.parameters.extend(options("meta.v1.UpdateOptions", &[]));
        op.body = Some(Body { content: c.object(), required: true, media: &["*/*"] });
        op.answers = answers(&[200, 201], &c.object());
        add(routes, item.clone(), Some(&name), op);
    }
    if r.allows("patch") {
        let description = format!("partially update the specified {kind}");
        let mut op = c.operation("patch", "patch", format!("patch{id}{scope}{kind}"), description);
        patch(c, &mut op, &c.object());
        add(routes, item.clone(), Some(&name), op);
    }
    if r.allows("delete") {
        let description = format!("delete{}{kind}", article(kind));
        let mut op = c.operation("delete", "delete", format!("delete{id}{scope}{kind}"), description);
        op.parameters.extend(options("meta.v1.DeleteOptions", &[]));
        op.body = Some(Body { content: meta("DeleteOptions"), required: false, media: &["*/*"] });
        op.answers = answers(&[200, 202], &deleted(c));
        add(routes, item.clone(), Some(&name), op);
    }
    if r.allows("watch") && !c.custom {
        let of_list = "watch individual changes to a list of";
        let instead = "deprecated: use the 'watch' parameter with a list operation instead";
        let op = |id: String| watch(id, "watchlist", format!("{of_list} {kind}. {instead}."));
        add(routes, format!("{base}/watch{within}/{}", r.plural), None, op(format!("watch{id}{scope}{kind}List")));
        if r.namespaced {
            let all = op(format!("watch{id}{kind}ListForAllNamespaces"));
            add(routes, format!("{base}/watch/{}", r.plural), None, all);
        }
        let description = format!(
            "watch changes to an object of kind {kind}. {instead}, filtered to a single item with the 'fieldSelector' parameter."
        );
        let op = watch(format!("watch{id}{scope}{kind}"), "watch", description);
        add(routes, format!("{base}/watch{within}/{}/{{name}}", r.plural), Some(&name), op);
    }
    for subresource in &r.subresources {
        subresource_routes(c, subresource, &item, routes, &add);
    }
}

fn patch(c: &Context, op: &mut Operation, answer: &Content) {
    op.parameters.extend(options("meta.v1.PatchOptions", &[]));
    let media = if c.custom { CUSTOM_PATCH_MEDIA } else { patch_media() };
    op.body = Some(Body { content: meta("Patch"), required: true, media });
    op.answers = answers(&[200, 201], answer);
}

/// Some resources answer a deletion with what was deleted.
fn deleted(c: &Context) -> Content {
    const GIVE_BACK: [&str; 12] = [
        "csidrivers",
        "csinodes",
        "persistentvolumeclaims",
        "persistentvolumes",
        "pods",
        "podtemplates",
        "resourcequotas",
        "serviceaccounts",
        "services",
        "storageclasses",
        "volumeattachments",
        "volumeattributesclasses",
    ];
    let r = c.resource;
    let group = &*r.group_version.group;
    let give_back = match group {
        "" | "storage.k8s.io" => GIVE_BACK.contains(&&*r.plural),
        "resource.k8s.io" => true,
        _ => false,
    };
    if give_back { c.object() } else { meta("Status") }
}

fn subresource_routes(
    c: &Context,
    s: &SubresourceType,
    item: &str,
    routes: &mut Routes,
    add: &dyn Fn(&mut Routes, String, Option<&Parameter>, Operation),
) {
    let (id, scope, kind) = (&c.id, c.scope, &c.resource.kind);
    let of = format!("{scope}{kind}{}", title(&s.name));
    let path = format!("{item}/{}", s.name);
    let object = c.content(&s.group_version, &s.kind, &s.schema.name);
    let gvk = Some((s.group_version.group.to_string(), s.group_version.version.to_string(), s.kind.to_string()));
    let named = Parameter::path("name", format!("name of the {}", s.kind));
    let allows = |verb: &str| s.verbs.iter().any(|v| &**v == verb);
    if s.kind.ends_with("Options") {
        let with_path = ["", "/{path}"].into_iter().take(if &*s.name == "proxy" { 2 } else { 1 });
        for suffix in with_path {
            let methods = [
                ("delete", "delete"),
                ("get", "get"),
                ("head", "get"),
                ("options", "get"),
                ("patch", "patch"),
                ("post", "create"),
                ("put", "update"),
            ];
            for (method, verb) in methods {
                // Only a proxy passes on every method.
                if !allows(verb) || (matches!(method, "head" | "options") && &*s.name != "proxy") {
                    continue;
                }
                let tail = if suffix.is_empty() { "" } else { "WithPath" };
                let upper = method.to_ascii_uppercase();
                let mut op = c.operation(
                    method,
                    "connect",
                    format!("connect{id}{}{of}{tail}", title(method)),
                    format!("connect {upper} requests to {} of {kind}", s.name),
                );
                op.kind = gvk.clone();
                op.parameters = options(&short_name(&s.schema.name), &[]);
                if !suffix.is_empty() {
                    op.parameters.push(Parameter::path("path", "path to the resource"));
                }
                op.produces = vec!["*/*"];
                op.answers = vec![(200, Some(Content::Text))];
                add(routes, format!("{path}{suffix}"), Some(&named), op);
            }
        }
        return;
    }
    let of_parent = |verb: &str| format!("{verb} {} of the specified {kind}", s.name);
    let finish = |mut op: Operation| {
        op.kind.clone_from(&gvk);
        op
    };
    if allows("get") {
        let mut op = c.operation("get", "get", format!("read{id}{of}"), of_parent("read"));
        op.answers = answers(&[200], &object);
        if &*s.name == "log" {
            op.parameters.extend(options("core.v1.PodLogOptions", &[]));
            op.produces.insert(0, "text/plain");
            op.answers = vec![(200, Some(Content::Text))];
        }
        if c.custom {
            op.parameters.extend(options("meta.v1.GetOptions", &[]));
        }
        add(routes, path.clone(), Some(&named), finish(op));
    }
    if allows("update") {
        let mut op = c.operation("put", "put", format!("replace{id}{of}"), of_parent("replace"));
        op.parameters.extend(options("meta.v1.UpdateOptions", &[]));
        op.body = Some(Body { content: object.clone(), required: true, media: &["*/*"] });
        op.answers = answers(&[200, 201], &object);
        add(routes, path.clone(), Some(&named), finish(op));
    }
    if allows("patch") {
        let mut op = c.operation("patch", "patch", format!("patch{id}{of}"), of_parent("partially update"));
        patch(c, &mut op, &object);
        add(routes, path.clone(), Some(&named), finish(op));
    }
    if allows("create") {
        let description = format!("create {} of{}{kind}", s.name, article(kind));
        let mut op = c.operation("post", "post", format!("create{id}{of}"), description);
        op.parameters.extend(options("meta.v1.CreateOptions", &[]));
        op.body = Some(Body { content: object.clone(), required: true, media: &["*/*"] });
        op.answers = answers(&[200, 201, 202], &object);
        add(routes, path, Some(&named), finish(op));
    }
}

/// `io.k8s.api.core.v1.PodExecOptions` as `core.v1.PodExecOptions`.
fn short_name(name: &str) -> String {
    let parts: Vec<&str> = name.rsplitn(4, '.').collect();
    format!("{}.{}.{}", parts.get(2).unwrap_or(&""), parts.get(1).unwrap_or(&""), parts[0])
}
