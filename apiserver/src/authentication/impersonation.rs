//! Acting as another user (upstream: `endpoints/filters/impersonation`).
//!
//! Modes are tried in turn. The constrained ones ask two questions: may the caller do *this request* while
//! impersonating in this mode (`impersonate-on:<mode>:<verb>`), and may the caller be *that user* in this mode
//! (`impersonate:<mode>`). The last mode is the original one, which asks only for the verb `impersonate`.

use super::{ANONYMOUS, AUTHENTICATED, MASTERS, UNAUTHENTICATED};
use crate::authorization::{Authorizer, Decision, forbidden, forbidden_because};
use crate::request::{RequestInfo, User};
use coxswain_api::Status;
use futures::future::BoxFuture;
use http::HeaderMap;
use std::collections::{BTreeMap, HashMap};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// So many groups or extra values and more are first asked for all at once, with the name `*`.
const MANY: usize = 4;

/// How many callers are remembered with the mode that served them last; beyond it all are forgotten.
const REMEMBERED_MAX: usize = 10_000;

/// Decides impersonation for a server. Holds which mode last served each caller: it is tried first, and its refusal is
/// the one told.
#[derive(Default)]
pub struct Impersonation {
    last: parking_lot::Mutex<HashMap<String, usize>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    UserInfo,
    Legacy,
}

const MODES: [Mode; 5] =
    [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Legacy];

impl Impersonation {
    /// The user that `requestor` wants to be and may be; none if the request does not ask for another. Removes the
    /// headers, so that nothing later knows the difference.
    pub fn impersonate<'a>(
        &'a self,
        authorizer: &'a dyn Authorizer,
        requestor: &'a User,
        headers: &'a mut HeaderMap,
        request: &'a RequestInfo,
    ) -> BoxFuture<'a, Result<Option<User>, Status>> {
        Box::pin(async move {
            let Some(wanted) = wanted(headers)? else { return Ok(None) };
            self.be(authorizer, requestor, &wanted, request).await.map(Some)
        })
    }

    async fn be(
        &self,
        authorizer: &dyn Authorizer,
        requestor: &User,
        wanted: &User,
        request: &RequestInfo,
    ) -> Result<User, Status> {
        let remembered = self.last.lock().get(&requestor.name).copied();
        let mut order: Vec<usize> = (0..MODES.len()).collect();
        // The sort is stable: the remembered mode comes first, the others keep their order.
        order.sort_by_key(|i| Some(*i) != remembered);
        let mut first_refusal = None;
        for index in order {
            let attempt = Attempt { authorizer, requestor, wanted, request, mode: MODES[index] };
            match attempt.check().await {
                Ok(Some(user)) => {
                    let mut last = self.last.lock();
                    if last.len() >= REMEMBERED_MAX {
                        last.clear();
                    }
                    last.insert(requestor.name.clone(), index);
                    return Ok(user);
                }
                Ok(None) => {}
                Err(status) => {
                    first_refusal.get_or_insert(status);
                }
            }
        }
        Err(first_refusal.unwrap_or_else(|| Status::internal("all impersonation modes failed")))
    }
}

struct Attempt<'a> {
    authorizer: &'a dyn Authorizer,
    requestor: &'a User,
    wanted: &'a User,
    request: &'a RequestInfo,
    mode: Mode,
}

impl Attempt<'_> {
    fn mode_name(&self) -> &'static str {
        match self.mode {
            Mode::AssociatedNode => "associated-node",
            Mode::ArbitraryNode => "arbitrary-node",
            Mode::ServiceAccount => "serviceaccount",
            Mode::UserInfo => "user-info",
            Mode::Legacy => "",
        }
    }

    /// Whether the mode is meant for this kind of user at all.
    fn applies(&self) -> bool {
        let wanted = self.wanted;
        let name_only = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        let node = node_name(&wanted.name);
        let service_account = split_service_account(&wanted.name);
        match self.mode {
            Mode::AssociatedNode => {
                let own = self.requestor.extra.get("authentication.kubernetes.io/node-name").map(Vec::as_slice);
                name_only
                    && split_service_account(&self.requestor.name).is_some()
                    && node.is_some_and(|n| matches!(own, Some([one]) if one == n))
            }
            Mode::ArbitraryNode => name_only && node.is_some(),
            Mode::ServiceAccount => name_only && service_account.is_some(),
            Mode::UserInfo => node.is_none() && service_account.is_none(),
            Mode::Legacy => true,
        }
    }

    async fn check(&self) -> Result<Option<User>, Status> {
        if !self.applies() {
            return Ok(None);
        }
        if self.mode != Mode::Legacy {
            let verb = format!("impersonate-on:{}:{}", self.mode_name(), self.request.verb);
            self.authorize(RequestInfo { verb, ..self.request.clone() }).await?;
        }
        let mut user = self.wanted.clone();
        self.authorize_name(&mut user).await?;
        if !self.wanted.uid.is_empty() {
            self.authorize(self.attributes("authentication.k8s.io", "uids", &self.wanted.uid)).await?;
        }
        self.authorize_groups().await?;
        self.authorize_extra().await?;
        if user.name == ANONYMOUS {
            add_group(&mut user, UNAUTHENTICATED);
        } else if !user.in_group(UNAUTHENTICATED) {
            add_group(&mut user, AUTHENTICATED);
        }
        Ok(Some(user))
    }

    async fn authorize_name(&self, user: &mut User) -> Result<(), Status> {
        let mut asked = self.attributes(self.identity_group(), "users", &self.wanted.name);
        if self.mode != Mode::Legacy
            && let Some(node) = node_name(&self.wanted.name)
        {
            asked.resource = "nodes".into();
            // What is allowed for one associated node is allowed for each.
            asked.name = if self.mode == Mode::AssociatedNode { "*".into() } else { node.into() };
            user.groups = vec!["system:nodes".into()];
        }
        if let Some((namespace, name)) = split_service_account(&self.wanted.name) {
            asked.resource = "serviceaccounts".into();
            asked.namespace = namespace.into();
            asked.name = name.into();
            if self.wanted.groups.is_empty() {
                user.groups = super::service_account::groups(namespace);
            }
        }
        self.authorize(asked).await
    }

    async fn authorize_groups(&self) -> Result<(), Status> {
        let groups = &self.wanted.groups;
        let attributes = |name: &str| self.attributes(self.identity_group(), "groups", name);
        if self.mode != Mode::Legacy {
            if groups.iter().any(String::is_empty) {
                let why = "impersonating the empty string group is not allowed";
                return Err(forbidden(self.requestor, &attributes(""), why));
            }
            if groups.iter().any(|g| g == MASTERS) {
                let why = "impersonating the system:masters group is not allowed";
                return Err(forbidden(self.requestor, &attributes(MASTERS), why));
            }
            if groups.len() >= MANY && self.authorize(attributes("*")).await.is_ok() {
                return Ok(());
            }
        }
        for group in groups {
            self.authorize(attributes(group)).await?;
        }
        Ok(())
    }

    async fn authorize_extra(&self) -> Result<(), Status> {
        let extra = &self.wanted.extra;
        let attributes = |key: &str, value: &str| RequestInfo {
            subresource: key.into(),
            ..self.attributes("authentication.k8s.io", "userextras", value)
        };
        if self.mode != Mode::Legacy && !extra.is_empty() {
            if let Some(why) = wrong_extra(extra) {
                return Err(forbidden(self.requestor, &attributes("", ""), &why));
            }
            let many = extra.len() >= MANY || extra.values().map(Vec::len).sum::<usize>() >= MANY;
            if many && self.authorize(attributes("*", "*")).await.is_ok() {
                return Ok(());
            }
        }
        for (key, values) in extra {
            for value in values {
                self.authorize(attributes(key, value)).await?;
            }
        }
        Ok(())
    }

    /// The API group that users and groups are of.
    fn identity_group(&self) -> &'static str {
        if self.mode == Mode::Legacy { "" } else { "authentication.k8s.io" }
    }

    fn attributes(&self, group: &str, resource: &str, name: &str) -> RequestInfo {
        let verb = match self.mode {
            Mode::Legacy => "impersonate".to_owned(),
            _ => format!("impersonate:{}", self.mode_name()),
        };
        RequestInfo {
            is_resource: true,
            verb,
            group: group.into(),
            version: "v1".into(),
            resource: resource.into(),
            name: name.into(),
            ..RequestInfo::default()
        }
    }

    async fn authorize(&self, asked: RequestInfo) -> Result<(), Status> {
        match self.authorizer.authorize(self.requestor, &asked).await {
            Decision::Allow(_) => Ok(()),
            refused => Err(forbidden_because(self.requestor, &asked, &refused)),
        }
    }
}

fn add_group(user: &mut User, group: &str) {
    if !user.in_group(group) {
        user.groups.push(group.into());
    }
}

/// The user that the headers ask for. Takes the headers away.
fn wanted(headers: &mut HeaderMap) -> Result<Option<User>, Status> {
    let text = |v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
    let mut user = User {
        name: headers.get(USER).map(text).unwrap_or_default(),
        uid: headers.get(UID).map(text).unwrap_or_default(),
        groups: headers.get_all(GROUP).iter().map(text).collect(),
        extra: BTreeMap::new(),
    };
    for (name, value) in headers.iter() {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            user.extra.entry(unescape(key)).or_default().push(text(value));
        }
    }
    if user == User::default() {
        return Ok(None);
    }
    if user.name.is_empty() {
        return Err(Status::bad_request(format!("requested {} without impersonating a user name", go_syntax(&user))));
    }
    let ours: Vec<_> = headers
        .keys()
        .filter(|n| matches!(n.as_str(), USER | GROUP | UID) || n.as_str().starts_with(EXTRA))
        .cloned()
        .collect();
    for name in ours {
        headers.remove(name);
    }
    Ok(Some(user))
}

/// Percent-decoding of a header name's part; malformed text stays as it is.
pub(super) fn unescape(key: &str) -> String {
    let mut out = Vec::with_capacity(key.len());
    let mut bytes = key.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| (b as char).to_digit(16));
        match (digit(bytes.next()), digit(bytes.next())) {
            (Some(high), Some(low)) => out.push((high * 16 + low) as u8),
            _ => return key.to_owned(),
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| key.to_owned())
}

/// Upstream prints the struct as Go's `%#v` does.
fn go_syntax(user: &User) -> String {
    let quote = coxswain_api::field::go_quote;
    let list = |values: &[String]| {
        let quoted: Vec<String> = values.iter().map(|v| quote(v)).collect();
        format!("[]string{{{}}}", quoted.join(", "))
    };
    let groups = if user.groups.is_empty() { "[]string(nil)".to_owned() } else { list(&user.groups) };
    let extra = if user.extra.is_empty() {
        "map[string][]string(nil)".to_owned()
    } else {
        let entries: Vec<String> = user.extra.iter().map(|(k, v)| format!("{}:{}", quote(k), list(v))).collect();
        format!("map[string][]string{{{}}}", entries.join(", "))
    };
    format!("&user.DefaultInfo{{Name:{}, UID:{}, Groups:{groups}, Extra:{extra}}}", quote(&user.name), quote(&user.uid))
}

/// What the constrained modes do not accept of extra values.
fn wrong_extra(extra: &BTreeMap<String, Vec<String>>) -> Option<String> {
    for (key, values) in extra {
        if key.is_empty() {
            return Some("impersonating the empty string key in extra is not allowed".into());
        }
        if let Some(why) = wrong_domain_prefixed_path(key) {
            return Some(format!("impersonating an invalid key in extra is not allowed: {why}"));
        }
        if key.to_lowercase() != *key {
            let key = coxswain_api::field::go_quote(key);
            return Some(format!("impersonating a non-lowercase key in extra is not allowed: {key}"));
        }
        if values.is_empty() {
            return Some("impersonating empty values in extra is not allowed".into());
        }
        if values.iter().any(String::is_empty) {
            return Some("impersonating the empty string value in extra is not allowed".into());
        }
    }
    None
}

/// `domain/path` (upstream: `IsDomainPrefixedPath`).
fn wrong_domain_prefixed_path(key: &str) -> Option<String> {
    use coxswain_api::field::{Error, Path};
    let path = Path::new("extra").child("key");
    let invalid = |detail: &str| Some(Error::invalid(&path, key, detail).to_string());
    let Some((host, rest)) = key.split_once('/').filter(|(h, r)| !h.is_empty() && !r.is_empty()) else {
        return invalid("must be a domain-prefixed path (such as \"acme.io/foo\")");
    };
    if let Some(why) = coxswain_api::names::dns1123_subdomain(host, false).first() {
        return invalid(why);
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/%.~_:@!$&'()*+,;=-".contains(c);
    if !rest.chars().all(plain) {
        return invalid("Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')");
    }
    None
}

/// The node of `system:node:<name>`.
fn node_name(user: &str) -> Option<&str> {
    user.strip_prefix("system:node:").filter(|n| coxswain_api::names::dns1123_subdomain(n, false).is_empty())
}

/// Namespace and name of `system:serviceaccount:<namespace>:<name>`.
pub fn split_service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let good = !name.contains(':')
        && coxswain_api::names::dns1123_label(namespace, false).is_empty()
        && coxswain_api::names::dns1123_subdomain(name, false).is_empty();
    good.then_some((namespace, name))
}
