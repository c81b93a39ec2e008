//! ConfigMaps of an API server as registers, watched and listed: how the fault tests see a server from outside.

use super::checks::{Event, Listed, Watched};
use super::clients::Register;
use super::history::{self, Answer, Call, Version};
use anyhow::{Context, Result, anyhow, bail, ensure};
use futures::AsyncBufReadExt;
use http::{Method, Request};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const NAMESPACE: &str = "faults";
/// After this long an answer counts as lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// One API server.
pub struct Server {
    pub name: String,
    pub client: kube::Client,
}

enum Reply {
    Got(u16, Vec<u8>),
    Lost,
    /// Nobody listens.
    NeverSent,
}

fn never_sent(error: &kube::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        // No connection came about: refused, or reset before a server that ends had accepted it.
        if error.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|e| e.is_connect()) {
            return true;
        }
        source = error.source();
    }
    false
}

#[derive(Deserialize)]
struct ConfigMap {
    metadata: Metadata,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(rename = "resourceVersion")]
    resource_version: String,
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
    items: Vec<ConfigMap>,
}

#[derive(Deserialize)]
struct ListMetadata {
    #[serde(rename = "resourceVersion")]
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

impl ConfigMap {
    fn revision(&self) -> Result<u64> {
        let revision = &self.metadata.resource_version;
        revision.parse().with_context(|| format!("{} has resourceVersion {revision:?}", self.metadata.name))
    }

    fn version(&self) -> Result<Version> {
        let id = history::read_data(&self.metadata.name, &self.data).map_err(|e| anyhow!(e))?;
        Ok(Version { id, revision: self.revision()? })
    }
}

impl Server {
    pub fn new(name: String, port: u16, token: &str) -> Result<Server> {
        let client = coxswain_client::connect::from_kubeconfig_value(json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": format!("https://127.0.0.1:{port}"), "insecure-skip-tls-verify": true}}],
            "users": [{"name": "it", "user": {"token": token}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        }))?;
        Ok(Server { name, client })
    }

    /// Asks, and takes whatever is answered.
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Reply> {
        let body = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Content-Type", "application/json")
            .body(kube::client::Body::from(body))?;
        let answer = async {
            let response = match self.client.send(request).await {
                Ok(response) => response,
                Err(error) if never_sent(&error) => return Reply::NeverSent,
                Err(error) => {
                    tracing::info!(server = self.name, ?error, "an answer was lost");
                    return Reply::Lost;
                }
            };
            let code = response.status().as_u16();
            response.into_body().collect_bytes().await.map_or(Reply::Lost, |body| Reply::Got(code, body.to_vec()))
        };
        Ok(tokio::time::timeout(PATIENCE, answer).await.unwrap_or(Reply::Lost))
    }

    pub async fn ready(&self) -> bool {
        let probe = tokio::time::timeout(Duration::from_secs(1), self.ask(Method::GET, "/readyz", None));
        matches!(probe.await, Ok(Ok(Reply::Got(200, _))))
    }

    pub async fn make_namespace(&self) -> Result<()> {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        let answer = self.ask(Method::POST, "/api/v1/namespaces", Some(namespace)).await?;
        match answer {
            Reply::Got(201 | 409, _) => Ok(()),
            Reply::Got(_, body) => bail!("the namespace could not be made: {}", String::from_utf8_lossy(&body)),
            _ => bail!("the namespace could not be made"),
        }
    }

    /// Everything, in pages of one moment.
    pub async fn list(&self, page: usize) -> Result<Option<Listed>> {
        let (mut objects, mut next) = (BTreeMap::new(), String::new());
        loop {
            let path = format!("{}?limit={page}&continue={next}", collection());
            let Reply::Got(code, body) = self.ask(Method::GET, &path, None).await? else { return Ok(None) };
            match code {
                200 => {}
                // The server that began the list is gone, and what it knew of old revisions with it.
                410 | 429 | 500.. => return Ok(None),
                _ => bail!("{}: a list was answered {code}: {}", self.name, String::from_utf8_lossy(&body)),
            }
            let list: List = serde_json::from_slice(&body).with_context(|| format!("{}: a torn list", self.name))?;
            for map in list.items.iter().filter(|m| m.metadata.name.starts_with("object-")) {
                objects.insert(map.metadata.name.clone(), map.version()?);
            }
            match list.metadata.next.filter(|n| !n.is_empty()) {
                Some(token) => next = token.replace('=', "%3D").replace('+', "%2B").replace('/', "%2F"),
                None => {
                    let revision = list.metadata.resource_version.parse().context("the list's resourceVersion")?;
                    return Ok(Some(Listed { revision, objects }));
                }
            }
        }
    }
}

fn collection() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/configmaps")
}

impl Register for Server {
    async fn call(&self, key: &str, call: &Call) -> Result<Answer> {
        let one = format!("{}/{key}", collection());
        let object = |id: u64, from: Option<&Version>| {
            let mut metadata = json!({"name": key});
            if let Some(from) = from {
                metadata["resourceVersion"] = from.revision.to_string().into();
            }
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": history::data(key, id)})
        };
        let answer = match call {
            Call::Get => self.ask(Method::GET, &one, None).await,
            Call::Create(id) => self.ask(Method::POST, &collection(), Some(object(*id, None))).await,
            Call::Update { from, to } => self.ask(Method::PUT, &one, Some(object(*to, Some(from)))).await,
            Call::Delete { from } => {
                let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
                if let Some(from) = from {
                    options["preconditions"] = json!({"resourceVersion": from.revision.to_string()});
                }
                self.ask(Method::DELETE, &one, Some(options)).await
            }
        };
        let (code, body) = match answer? {
            Reply::Got(code, body) => (code, body),
            Reply::Lost => return Ok(Answer::Unknown),
            Reply::NeverSent => return Ok(Answer::NeverSent),
        };
        let text =
            || format!("{}: {call:?} of {key} was answered {code}: {}", self.name, String::from_utf8_lossy(&body));
        let version = || -> Result<Version> {
            let map: ConfigMap = serde_json::from_slice(&body).with_context(text)?;
            ensure!(map.metadata.name == key, "{}", text());
            map.version()
        };
        Ok(match (call, code) {
            (Call::Get, 200) => Answer::Got(Some(version()?)),
            (Call::Get, 404) => Answer::Got(None),
            (Call::Create(id), 200 | 201) | (Call::Update { to: id, .. }, 200) => {
                let version = version()?;
                ensure!(version.id == *id, "{}", text());
                Answer::Put(version)
            }
            (Call::Delete { .. }, 200) => Answer::Deleted,
            (Call::Create(_), 409) => Answer::Exists,
            (Call::Update { .. } | Call::Delete { .. }, 409) => Answer::Conflict,
            (Call::Update { .. } | Call::Delete { .. }, 404) => Answer::Absent,
            // Refused for lack of room, of time, of a store: what of it was done shows later.
            (_, 429 | 500..) => Answer::Unknown,
            _ => bail!("{}", text()),
        })
    }
}

/// What a watch is told, and tells, while it runs.
#[derive(Default)]
pub struct Following {
    pub stop: AtomicBool,
    /// The last revision that it has passed.
    pub reached: AtomicU64,
    /// 410 is an answer that a fault explains: history was forgotten.
    pub may_expire: bool,
}

/// One watch over all that happens, by turns at each of the servers. It begins again from where it was, and lists anew only
/// when it is told that its revision is too old; then a new story begins.
pub async fn watch(servers: Vec<Arc<Server>>, name: String, following: Arc<Following>) -> Result<Vec<Watched>> {
    let mut stories: Vec<Watched> = Vec::new();
    let mut turn = 0;
    let mut expired = true;
    while !following.stop.load(Ordering::SeqCst) {
        let server = &servers[turn % servers.len()];
        turn += 1;
        if expired {
            let Some(list) = server.list(500).await? else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (begin, name) = ((list.revision, list.objects), format!("{name}.{}", stories.len()));
            stories.push(Watched { name, reached: begin.0, begin, events: Vec::new() });
            expired = false;
        }
        let Some(story) = stories.last_mut() else { continue };
        let answer = follow(server, story, &following).await?;
        if answer == Some(410) {
            ensure!(following.may_expire, "{name} was told that revision {} is too old", story.reached);
            expired = true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(stories)
}

/// Follows one connection to its end; an answer that is no stream, if there was one.
async fn follow(server: &Server, story: &mut Watched, following: &Following) -> Result<Option<u16>> {
    let path = format!(
        "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds=280&resourceVersion={}",
        collection(),
        story.reached
    );
    let request = Request::get(path).body(Vec::new())?;
    let opened = tokio::time::timeout(PATIENCE, server.client.request_stream(request)).await;
    let lines = match opened {
        Ok(Ok(lines)) => lines,
        Ok(Err(kube::Error::Api(status))) => return Ok(Some(status.code)),
        _ => return Ok(None),
    };
    let mut lines = std::pin::pin!(lines);
    let mut line = Vec::new();
    let mut heard = Instant::now();
    // Bookmarks come every minute at least; a server that was stopped in its tracks says nothing and closes nothing.
    while !following.stop.load(Ordering::SeqCst) && heard.elapsed() < Duration::from_secs(90) {
        // What was read of a line before the time was up stays in `line`.
        match tokio::time::timeout(Duration::from_millis(200), lines.read_until(b'\n', &mut line)).await {
            Err(_) => continue,
            Ok(Ok(_)) if line.ends_with(b"\n") => {}
            // The last line of a killed server may be cut short.
            Ok(_) => break,
        }
        heard = Instant::now();
        let text = || format!("{}: {}", story.name, String::from_utf8_lossy(&line));
        let event: Value = serde_json::from_slice(&line).with_context(text)?;
        if event["type"] == "ERROR" {
            return Ok(Some(event["object"]["code"].as_u64().unwrap_or(0) as u16));
        }
        let (bookmark, deleted) = (event["type"] == "BOOKMARK", event["type"] == "DELETED");
        let map = ConfigMap::deserialize(&event["object"]).with_context(text)?;
        let revision = map.revision()?;
        if !bookmark {
            ensure!(revision > story.reached, "it had reached {}, and then came {}", story.reached, text());
        }
        if !bookmark && map.metadata.name.starts_with("object-") {
            let id = map.version()?.id;
            story.events.push(Event { revision, key: map.metadata.name, id: (!deleted).then_some(id) });
        }
        story.reached = story.reached.max(revision);
        following.reached.store(story.reached, Ordering::SeqCst);
        line.clear();
    }
    Ok(None)
}
