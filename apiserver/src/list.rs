//! Reading: get and list (upstream: `endpoints/handlers/get.go`, the cacher's `GetList` and `storage.ValidateListOptions`).

use crate::cache::Snapshot;
use crate::encode::{Encoder, ListMeta};
use crate::registry::options::Query;
use crate::request::RequestInfo;
use crate::resources::Served;
use crate::respond::Answer;
use crate::store::{Object, Store, storage_status};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coxswain_api::features::Feature;
use coxswain_api::field::{Error, ErrorList, Path, go_quote};
use coxswain_api::selector::Selector;
use coxswain_api::selector::field_selector::FieldSelector;
use coxswain_api::{Status, Value, json};
use coxswain_storage::{ListOptions as StorageList, Revision};
use serde::{Deserialize, Serialize};
use std::ops::Bound;
use std::sync::Arc;

const CONTINUE_TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list result. You can \
     start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder \
     of the results. Continuing with the provided token results in an inconsistent list - objects that were created, \
     modified, or deleted between the time the first chunk was returned and now may show up in the list.";
const LIST_TOO_OLD: &str = "The resourceVersion for the provided list is too old.";

/// Lists of so many objects that must be encoded anew are made on a thread of their own.
const BLOCKING_MIN: usize = 100;

/// `metav1.ListOptions`, read and checked.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub selection: Selection,
    pub watch: bool,
    pub allow_watch_bookmarks: bool,
    pub resource_version: String,
    pub resource_version_match: String,
    pub timeout_seconds: Option<i64>,
    pub limit: i64,
    pub continue_token: String,
    pub send_initial_events: Option<bool>,
}

/// Which objects a list, watch or deletecollection is about.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Empty for all.
    pub namespace: String,
    pub labels: Selector,
    pub fields: FieldSelector,
}

impl Default for Selection {
    fn default() -> Self {
        Self { namespace: String::new(), labels: Selector::everything(), fields: FieldSelector::default() }
    }
}

impl Selection {
    pub fn matches(&self, object: &Object) -> bool {
        (self.namespace.is_empty() || self.namespace == object.namespace())
            && self.labels.matches(|key| object.label(key))
            && self.fields.matches(|field| object.field(field))
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// The only name that can be meant.
    pub fn name(&self) -> Option<&str> {
        self.fields.exact_match("metadata.name")
    }
}

impl ListOptions {
    /// Reads the query of a list, watch or deletecollection.
    pub fn of_query(query: &Query, info: &RequestInfo, served: &Served) -> Result<Self, Status> {
        let text = |name: &str| query.first(name).unwrap_or_default().to_owned();
        let bool_of = |name: &str| query.first(name).map(|v| !(v == "0" || v.eq_ignore_ascii_case("false")));
        let labels = Selector::parse(query.first("labelSelector").unwrap_or_default()).map_err(Status::bad_request)?;
        let fields =
            FieldSelector::parse(query.first("fieldSelector").unwrap_or_default()).map_err(Status::bad_request)?;
        let mut options = Self {
            selection: Selection { namespace: String::new(), labels, fields },
            watch: bool_of("watch").unwrap_or(false) || info.verb == "watch",
            allow_watch_bookmarks: bool_of("allowWatchBookmarks").unwrap_or(false),
            resource_version: text("resourceVersion"),
            resource_version_match: text("resourceVersionMatch"),
            timeout_seconds: int_of(query, "timeoutSeconds")?,
            limit: int_of(query, "limit")?.unwrap_or(0),
            continue_token: text("continue"),
            send_initial_events: bool_of("sendInitialEvents"),
        };
        if served.ty.namespaced {
            options.selection.namespace = info.namespace.clone();
        }
        // A watch that lists first in the old way is one that asks for the initial events.
        if Feature::WatchList.enabled()
            && options.watch
            && options.send_initial_events.is_none()
            && options.resource_version_match.is_empty()
            && matches!(options.resource_version.as_str(), "" | "0")
        {
            options.send_initial_events = Some(true);
            options.resource_version_match = "NotOlderThan".into();
        }
        let errors = options.check();
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors));
        }
        options.selection.fields = known_fields(options.selection.fields, served)?;
        if !info.name.is_empty() && info.verb == "watch" {
            options.selection.fields = only_name(options.selection.fields, &info.name)?;
        }
        Ok(options)
    }

    fn check(&self) -> ErrorList {
        let mut errors = ErrorList::new();
        let path = Path::new("resourceVersionMatch");
        let rv_match = self.resource_version_match.as_str();
        let mut forbid = |why: &str| errors.push(Error::forbidden(&path, why));
        if self.watch {
            if self.send_initial_events.is_some() && rv_match != "NotOlderThan" {
                forbid("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
            }
            if self.send_initial_events.is_some() && !Feature::WatchList.enabled() {
                let why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
                errors.push(Error::forbidden(&Path::new("sendInitialEvents"), why));
            }
            if !rv_match.is_empty() {
                if self.send_initial_events.is_none() {
                    let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                    errors.push(Error::forbidden(&path, why));
                }
                if rv_match != "NotOlderThan" {
                    errors.push(Error::not_supported(&path, rv_match, &["NotOlderThan"]));
                }
                if !self.continue_token.is_empty() {
                    errors.push(Error::forbidden(&path, "resourceVersionMatch is forbidden when continue is provided"));
                }
            }
            return errors;
        }
        if !rv_match.is_empty() {
            if self.resource_version.is_empty() {
                forbid("resourceVersionMatch is forbidden unless resourceVersion is provided");
            }
            if !self.continue_token.is_empty() {
                forbid("resourceVersionMatch is forbidden when continue is provided");
            }
            if rv_match != "Exact" && rv_match != "NotOlderThan" {
                errors.push(Error::not_supported(&path, rv_match, &["Exact", "NotOlderThan", ""]));
            }
            if rv_match == "Exact" && self.resource_version == "0" {
                let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                errors.push(Error::forbidden(&path, why));
            }
        }
        if self.send_initial_events.is_some() {
            errors.push(Error::forbidden(&Path::new("sendInitialEvents"), "sendInitialEvents is forbidden for list"));
        }
        errors
    }
}

/// A number of the query, with the words of Go's parser where it is none.
fn int_of(query: &Query, name: &str) -> Result<Option<i64>, Status> {
    let Some(text) = query.first(name) else { return Ok(None) };
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|e: std::num::ParseIntError| {
        use std::num::IntErrorKind::{NegOverflow, PosOverflow};
        let what = match e.kind() {
            PosOverflow | NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        Status::bad_request(format!("strconv.ParseInt: parsing {}: {what}", go_quote(text)))
    })
}

/// A resourceVersion as upstream's versioner parses it; `""` and `"0"` are 0.
pub fn parse_resource_version(text: &str) -> Result<Revision, String> {
    if text.is_empty() {
        return Ok(Revision(0));
    }
    text.parse().map(Revision).map_err(|e: std::num::ParseIntError| {
        let what = match e.kind() {
            std::num::IntErrorKind::PosOverflow => "value out of range",
            _ => "invalid syntax",
        };
        let quoted = go_quote(text);
        format!("resourceVersion: Invalid value: {quoted}: strconv.ParseUint: parsing {quoted}: {what}")
    })
}

/// Checks the labels of a field selector against what the kind can select by, and renames historical ones.
fn known_fields(mut selector: FieldSelector, served: &Served) -> Result<FieldSelector, Status> {
    let known = served.strategy.selectable_labels();
    let (group, kind) = (&*served.ty.group_version.group, &*served.ty.kind);
    for requirement in &mut selector.requirements {
        let field = &*requirement.field;
        if group.is_empty() && kind == "Pod" && field == "spec.host" {
            requirement.field = "spec.nodeName".into();
            continue;
        }
        // Events of the newer group are the same objects, whose fields have other names there.
        if group == "events.k8s.io" {
            match event_field(field) {
                Some(renamed) => requirement.field = renamed.into(),
                None => return Err(Status::bad_request(format!("field label not supported: {field}"))),
            }
            continue;
        }
        let own = known.contains(&field);
        // The few cluster-wide kinds with selectable fields of their own do not list the namespace among them.
        let common =
            field == "metadata.name" || (field == "metadata.namespace" && (served.ty.namespaced || known.is_empty()));
        if own || common {
            continue;
        }
        return Err(Status::bad_request(if known.is_empty() && !served.custom {
            format!("{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"", go_quote(field))
        } else {
            match (group, kind) {
                ("batch", "Job") => format!("field label {} not supported for Job", go_quote(field)),
                ("resource.k8s.io", _) => {
                    let version = served.ty.group_version.api_version();
                    format!("field label not supported for {version}, Kind={kind}: {field}")
                }
                _ => format!("field label not supported: {field}"),
            }
        }));
    }
    Ok(selector)
}

/// What a field of an event of `events.k8s.io` is called in the core group.
fn event_field(field: &str) -> Option<String> {
    match field {
        "metadata.name" | "metadata.namespace" | "reason" | "type" => Some(field.to_owned()),
        "reportingController" => Some("reportingComponent".into()),
        _ => match field.strip_prefix("regarding.")? {
            part @ ("kind" | "namespace" | "name" | "uid" | "apiVersion" | "resourceVersion" | "fieldPath") => {
                Some(format!("involvedObject.{part}"))
            }
            _ => None,
        },
    }
}

/// A watch of one object by its path.
fn only_name(selector: FieldSelector, name: &str) -> Result<FieldSelector, Status> {
    if selector.is_everything() {
        return FieldSelector::parse(&format!(
            "metadata.name={}",
            coxswain_api::selector::field_selector::escape_field_value(name)
        ))
        .map_err(Status::bad_request);
    }
    if selector.exact_match("metadata.name") != Some(name) {
        return Err(Status::bad_request("fieldSelector metadata.name doesn't match requested name"));
    }
    Ok(selector)
}

/// Upstream's continue token.
#[derive(Serialize, Deserialize)]
pub struct Continue {
    #[serde(rename = "v", default)]
    version: String,
    #[serde(rename = "rv", default)]
    revision: i64,
    /// The key after the resource's prefix at which the next page begins.
    #[serde(default)]
    start: String,
}

impl Continue {
    /// The key at which the next page begins, under `prefix`, and the revision to read at.
    pub fn decode(token: &str, prefix: &str) -> Result<(String, i64), Status> {
        let refuse = |why: String| Status::bad_request(format!("invalid continue token: {why}"));
        let bytes = URL_SAFE_NO_PAD
            .decode(token)
            .map_err(|_| refuse(format!("continue key is not valid: {}", illegal_base64(token))))?;
        let token: Continue = serde_json::from_slice(&bytes).map_err(|e| {
            // Go's decoder says what is wrong with the text in its own words.
            let why =
                coxswain_api::codec::json::decode_any(&bytes).err().map_or_else(|| e.to_string(), |e| e.to_string());
            refuse(format!("continue key is not valid: {why}"))
        })?;
        if token.version != "meta.k8s.io/v1" {
            let version = token.version;
            let what = "continue key is not valid: server does not recognize this encoded version";
            return Err(refuse(format!("{what} {version}")));
        }
        if token.revision == 0 {
            let what = "continue key is not valid: incorrect encoded start resourceVersion (version meta.k8s.io/v1)";
            return Err(refuse(what.into()));
        }
        if token.start.is_empty() {
            return Err(refuse("continue key is not valid: encoded start key empty (version meta.k8s.io/v1)".into()));
        }
        let start = token.start.strip_prefix('/').unwrap_or(&token.start);
        // A start key may not climb out of the resource's prefix.
        if start.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(refuse(format!("continue key is not valid: {}", token.start)));
        }
        Ok((format!("{prefix}{start}"), token.revision))
    }

    pub fn encode(key: &str, prefix: &str, revision: i64) -> String {
        let start = key.strip_prefix(prefix).unwrap_or(key).to_owned();
        let token = Continue { version: "meta.k8s.io/v1".into(), revision, start };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).expect("a token has only text and numbers"))
    }
}

/// Go's words for base64 that is none.
fn illegal_base64(text: &str) -> String {
    let legal = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let at = text.as_bytes().iter().position(|b| !legal(b)).unwrap_or(text.len());
    format!("illegal base64 data at input byte {at}")
}

/// One page of a list.
pub struct Page {
    pub objects: Vec<Arc<Object>>,
    pub meta: ListMeta,
}

/// Reads a page: the revision to read at, the range of keys, the selection, the limit.
pub async fn page(store: &Store, options: &ListOptions) -> Result<Page, Status> {
    let selection = &options.selection;
    let mut limit = usize::try_from(options.limit).ok().filter(|l| *l > 0);
    let mut from: Option<String> = None;
    let mut at: Option<Revision> = None;
    if options.continue_token.is_empty() {
        let rv = parse_resource_version(&options.resource_version)
            .map_err(|e| Status::bad_request(format!("invalid resource version: {e}")))?;
        match options.resource_version_match.as_str() {
            "Exact" => at = Some(rv),
            "" if limit.is_some() && rv.0 > 0 => at = Some(rv),
            // "Any version will do" is answered whole, as upstream's cache does.
            "" | "NotOlderThan" if options.resource_version == "0" => limit = None,
            _ => {}
        }
        if at.is_none() {
            match options.resource_version.as_str() {
                "" => {
                    store.catch_up().await?;
                }
                _ => {
                    store.feed().reach(rv).await?;
                }
            }
        }
    } else {
        let (start, revision) = Continue::decode(&options.continue_token, store.prefix())?;
        if !matches!(options.resource_version.as_str(), "" | "0") {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        from = Some(start);
        match u64::try_from(revision) {
            Ok(revision) => at = Some(Revision(revision)),
            Err(_) => {
                store.catch_up().await?;
            }
        }
    }

    let snapshot = match at {
        None => store.cache().snapshot(store.feed().progress()),
        Some(revision) => {
            store.feed().reach(revision).await?;
            match store.cache().snapshot_at(revision) {
                Ok(snapshot) => snapshot,
                Err(_) => from_storage(store, revision, options, from.as_deref()).await?,
            }
        }
    };
    if let Some(status) = store.cache().unreadable(store.prefix()) {
        return Err(status);
    }
    let page = select(store, &snapshot, selection, from.as_deref(), limit);
    if page.meta.continue_token.is_some() {
        store.cache().keep(&snapshot);
    }
    Ok(page)
}

/// The state at a revision that the cache has forgotten but the store has not.
async fn from_storage(
    store: &Store,
    revision: Revision,
    options: &ListOptions,
    from: Option<&str>,
) -> Result<Snapshot, Status> {
    let mut objects = crate::cache::Objects::new();
    let mut next: Option<Arc<str>> = None;
    loop {
        let request = StorageList { at: Some(revision), limit: Some(2000), from: next };
        let page = match store.storage().list(store.prefix(), request).await {
            Ok(page) => page,
            Err(coxswain_storage::Error::Compacted { .. }) => {
                let Some(from) = from else { return Err(Status::expired(LIST_TOO_OLD)) };
                // The client may go on at the latest state, knowing that its list is then inconsistent.
                let mut status = Status::expired(CONTINUE_TOO_OLD);
                status.metadata.continue_token = Continue::encode(from, store.prefix(), -1);
                return Err(status);
            }
            Err(other) => return Err(storage_status(other)),
        };
        for entry in page.entries {
            let key = entry.key.clone();
            objects.insert(key, store.object_of(entry).await?);
        }
        next = page.next;
        if next.is_none() {
            let _ = options;
            return Ok(Snapshot { objects, revision });
        }
    }
}

/// The matching objects of a state, in key order.
pub fn select(
    store: &Store,
    snapshot: &Snapshot,
    selection: &Selection,
    from: Option<&str>,
    limit: Option<usize>,
) -> Page {
    let mut meta = ListMeta { revision: snapshot.revision, continue_token: None, remaining: None };
    let prefix = match selection.namespace.as_str() {
        "" => store.prefix().to_owned(),
        namespace => format!("{}{namespace}/", store.prefix()),
    };
    // One name in one namespace is one key.
    if let Some(name) = selection.name().filter(|_| from.is_none() && limit.is_none())
        && (!store.hub.namespaced || !selection.namespace.is_empty())
    {
        let object = snapshot.objects.get(&*format!("{prefix}{name}")).filter(|o| selection.matches(o));
        return Page { objects: object.into_iter().cloned().collect(), meta };
    }
    let start = match from {
        Some(from) if from > prefix.as_str() => from,
        _ => prefix.as_str(),
    };
    let range = snapshot.objects.range::<_, str>((Bound::Included(start), Bound::Unbounded));
    let mut range = range.take_while(|(key, _)| key.starts_with(&prefix)).map(|(_, object)| object);
    let mut objects = Vec::new();
    let everything = selection.is_everything();
    let limit = limit.unwrap_or(usize::MAX);
    while objects.len() < limit
        && let Some(object) = range.next()
    {
        if everything || selection.matches(object) {
            objects.push(object.clone());
        }
    }
    if objects.len() == limit {
        let mut remaining = 0;
        // With selectors, upstream goes on as long as there is any further key, and gives no count.
        if everything {
            remaining = range.count();
        } else if range.next().is_some() {
            remaining = 1;
        }
        if remaining > 0
            && let Some(last) = objects.last()
        {
            let revision = i64::try_from(snapshot.revision.0).unwrap_or(i64::MAX);
            meta.continue_token = Some(Continue::encode(&format!("{}\0", last.key), store.prefix(), revision));
            meta.remaining = everything.then_some(remaining as u64);
        }
    }
    Page { objects, meta }
}

/// Serves a list.
pub async fn list(encoder: Encoder, store: &Store, options: &ListOptions) -> Result<Answer, Status> {
    let page = page(store, options).await?;
    if encoder.splices() || page.objects.len() < BLOCKING_MIN {
        return encoder.list(page.objects, &page.meta);
    }
    // Encoding many objects takes a thread for long: one that no other request waits for.
    let encoded = tokio::task::spawn_blocking(move || encoder.list(page.objects, &page.meta)).await;
    encoded.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
}

/// Reads one object: fresh, unless the client names a version it is content with.
pub async fn get(store: &Store, namespace: &str, name: &str, query: &Query) -> Result<Arc<Object>, Status> {
    let missing = || Status::not_found(&store.hub.group_version.group, &store.hub.plural, name);
    match query.first("resourceVersion").unwrap_or_default() {
        "" => store.get(namespace, name).await?.ok_or_else(missing),
        text => {
            // Upstream passes this error on as it is, without a reason.
            let revision = parse_resource_version(text).map_err(|e| Status::new(500, "", e))?;
            store.feed().reach(revision).await?;
            store.get_cached(namespace, name).ok_or_else(missing)
        }
    }
}

/// The tree of an empty list, for kinds that store nothing.
pub fn empty_list(kind: &str, api_version: &str) -> Value {
    json!({"kind": kind, "apiVersion": api_version, "metadata": {}, "items": []})
}
