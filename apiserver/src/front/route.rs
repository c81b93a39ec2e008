//! Requests for resources: which handler takes them, and what is wrong with those that none takes
//! (upstream: `endpoints/installer.go` and the path routing of go-restful).

use super::{Front, Incoming, NotCompressed};
use crate::encode::Encoder;
use crate::list::{self, ListOptions};
use crate::negotiate;
use crate::registry::pipeline::{Call, Content};
use crate::registry::scale;
use crate::resources::Served;
use crate::respond::{self, Answer, page_not_found, refusal};
use coxswain_api::{Status, Value};
use http::{Method, StatusCode};
use std::sync::Arc;

impl Front {
    pub(super) async fn resource(self: Arc<Self>, mut incoming: Incoming) -> Answer {
        let mut index = self.resources.index();
        let info = incoming.ctx.info.clone();
        let accepted = incoming.accepted_or_json();
        if index.get(&info.group, &info.version, &info.resource).is_none() {
            self.resources.catch_up().await;
            index = self.resources.index();
        }
        if !index.has_group(&info.group) {
            return page_not_found();
        }
        let Some(served) = index.get(&info.group, &info.version, &info.resource).cloned() else {
            // What is defined answers for its groups on its own, and not as routes of ours do.
            let custom = index.is_custom_group(&info.group);
            return if custom { page_not_found() } else { refusal(&Status::page_not_found(), accepted) };
        };
        drop(index);
        let action = match action(&served, &incoming) {
            Ok(action) => action,
            Err(status) if served.custom && status.message == Status::page_not_found().message => {
                return page_not_found();
            }
            Err(status) => return refusal(&status, accepted),
        };
        let acceptable = negotiate::accept(&incoming.headers, &incoming.query, served.custom).is_ok();
        let deprecation = crate::registry::builtin::deprecation(&served.ty).or(served.strategy.deprecation());
        if let Some(text) = deprecation.filter(|_| acceptable) {
            incoming.ctx.warnings.add(text);
            if !served.custom {
                self.metrics.note_deprecated(&info);
            }
        }
        let result = match action {
            Action::Connect => return self.connect(served, incoming).await,
            Action::Read => self.read(&served, &mut incoming).await,
            Action::Write => self.write(&served, &mut incoming).await,
        };
        result.unwrap_or_else(|status| refusal(&status, accepted))
    }

    async fn read(&self, served: &Arc<Served>, incoming: &mut Incoming) -> Result<Answer, Status> {
        let info = &incoming.ctx.info;
        let accepted = negotiate::accept(&incoming.headers, &incoming.query, served.custom).map_err(|status| {
            let is_list = matches!(info.verb.as_str(), "list" | "watch") && !served.custom;
            if is_list { negotiate::with_streams(status) } else { status }
        })?;
        let encoder = Encoder::new(served.clone(), accepted, &incoming.query, incoming.ctx.now)?;
        let Some(store) = &served.store else {
            return self.component_status(&encoder, incoming).await;
        };
        if matches!(info.verb.as_str(), "list" | "watch") {
            let options = ListOptions::of_query(&incoming.query, info, served)?;
            if !options.watch {
                return list::list(encoder, store, &options).await;
            }
            let mut answer = crate::watch::watch(encoder, store, options, self.shutdown.clone()).await?;
            answer.extensions_mut().insert(NotCompressed);
            return Ok(answer);
        }
        let namespace = if served.ty.namespaced { info.namespace.as_str() } else { "" };
        let object = list::get(store, namespace, &info.name, &incoming.query).await.map_err(|status| {
            // Events are stored under another group than the one that may have been asked.
            if status.is_not_found() { Status::not_found(&info.group, &info.resource, &info.name) } else { status }
        })?;
        if info.subresource == "scale" {
            let tree = scale::of_resource(&*served.strategy, &encoder.tree(&object)?, true)?;
            return self.other_tree(&encoder, tree, StatusCode::OK);
        }
        encoder.object(&object, StatusCode::OK)
    }

    async fn write(&self, served: &Arc<Served>, incoming: &mut Incoming) -> Result<Answer, Status> {
        let accepted = negotiate::accept(&incoming.headers, &incoming.query, served.custom)?;
        let body = incoming.read_body().await?;
        let call = Call {
            ctx: incoming.ctx.clone(),
            served: served.clone(),
            headers: std::mem::take(&mut incoming.headers),
            query: std::mem::take(&mut incoming.query),
            body,
        };
        let reply = self.pipeline.serve(&call).await?;
        let encoder = Encoder::new(served.clone(), accepted, &call.query, call.ctx.now)?;
        let code = respond::code(reply.code);
        match reply.content {
            Content::Stored(object) => encoder.object(&object, code),
            Content::Hub(tree) => encoder.tree_answer(encoder.converted(tree)?, code),
            Content::Tree(tree) => self.other_tree(&encoder, tree, code),
            Content::List { objects, revision, next } => {
                let meta = crate::encode::ListMeta { revision, continue_token: next, remaining: None };
                encoder.list(objects, &meta)
            }
        }
    }

    /// A tree of any kind, which says itself what it is: a scale, a review, a `Status`.
    fn other_tree(&self, encoder: &Encoder, tree: Value, code: StatusCode) -> Result<Answer, Status> {
        let text = |field: &str| tree.get(field).and_then(Value::as_str).unwrap_or_default();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let ty = &encoder.served.ty;
        if kind == &*ty.kind && version == ty.group_version.api_version() {
            return encoder.tree_answer(tree, code);
        }
        encoder.other_tree(&tree, code)
    }
}

enum Action {
    Read,
    Write,
    Connect,
}

/// What a method on a path means, if the resource has such a path and the path takes the method.
fn action(served: &Served, incoming: &Incoming) -> Result<Action, Status> {
    let info = incoming.info();
    let ty = &served.ty;
    let path = incoming.uri.path();
    // A list by name is still a list: the name then stands in the selector only.
    let by_selector = info.verb == "list" || (info.verb == "watch" && !is_watch_path(path));
    let named = !info.name.is_empty() && !by_selector;
    let in_namespace = !info.namespace.is_empty() || path.contains("/namespaces//");
    let is_namespace = info.group.is_empty() && info.resource == "namespaces";
    let no_such_path = (ty.namespaced && named && !in_namespace)
        || (!ty.namespaced && in_namespace && !is_namespace)
        || (info.verb == "proxy")
        // What can only be created has no objects with paths of their own.
        || (named && info.subresource.is_empty() && !["get", "update", "patch", "delete"].iter().any(|v| ty.allows(v)))
        || (!info.rest.is_empty() && info.subresource != "proxy");
    if no_such_path {
        return Err(Status::page_not_found());
    }
    let not_allowed = || {
        let message = "the server does not allow this method on the requested resource";
        Status::new(405, "MethodNotAllowed", message).with_details(Default::default())
    };
    if !info.subresource.is_empty() {
        let Some(sub) = ty.subresource(&info.subresource) else {
            // Custom resources know all subresource names, and those not switched on as missing objects.
            return Err(match info.subresource.as_str() {
                "status" | "scale" if served.custom => Status::not_found(&info.group, &info.resource, &info.name),
                _ => Status::page_not_found(),
            });
        };
        let connect = matches!(
            (&*info.resource, &*info.subresource),
            ("pods", "exec" | "attach" | "portforward" | "proxy" | "log") | ("nodes" | "services", "proxy")
        ) && info.group.is_empty();
        let of_header = matches!(incoming.method, Method::HEAD | Method::OPTIONS);
        if connect && info.subresource == "proxy" && (of_header || verb_of(&incoming.method).is_some()) {
            return Ok(Action::Connect);
        }
        let verb = verb_of(&incoming.method).ok_or_else(not_allowed)?;
        if !sub.verbs.iter().any(|v| &**v == verb) {
            return Err(not_allowed());
        }
        return Ok(if connect {
            Action::Connect
        } else if verb == "get" {
            Action::Read
        } else {
            Action::Write
        });
    }
    let verb = match (&incoming.method, named) {
        (&Method::GET, true) if info.verb == "watch" => "watch",
        (&Method::GET, true) => "get",
        (&Method::GET, false) => {
            if info.verb == "watch" {
                "watch"
            } else {
                "list"
            }
        }
        (&Method::POST, false) => "create",
        (&Method::PUT, true) => "update",
        (&Method::PATCH, true) => "patch",
        (&Method::DELETE, true) => "delete",
        (&Method::DELETE, false) => "deletecollection",
        _ => return Err(not_allowed()),
    };
    let reads = matches!(verb, "get" | "list" | "watch");
    // Across all namespaces one can only read.
    if !ty.allows(verb) || (ty.namespaced && !in_namespace && !reads) {
        return Err(not_allowed());
    }
    Ok(if reads { Action::Read } else { Action::Write })
}

fn is_watch_path(path: &str) -> bool {
    let mut parts = path.trim_matches('/').split('/');
    match parts.next() {
        Some("api") => parts.nth(1) == Some("watch"),
        Some("apis") => parts.nth(2) == Some("watch"),
        _ => false,
    }
}

fn verb_of(method: &Method) -> Option<&'static str> {
    Some(match *method {
        Method::GET => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => return None,
    })
}
