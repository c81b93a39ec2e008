//! Watches (upstream: `endpoints/handlers/watch.go` and the cacher's `cacheWatcher`).
//!
//! A watch is a stream of events: the initial state if asked for, the backlog from the ring, then what the cache hands over.
//! Nothing is sent twice and nothing is left out: the queue is opened in the same moment in which the state is read.

use crate::cache::{Event, EventKind, Scope, Snapshot, Watch};
use crate::encode::Encoder;
use crate::list::{ListOptions, Selection, parse_resource_version};
use crate::respond::{Answer, Body, answer};
use crate::store::{Object, Store};
use bytes::Bytes;
use coxswain_api::Status;
use coxswain_storage::Revision;
use futures::future::BoxFuture;
use futures::stream;
use http::StatusCode;
use rand::Rng;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Without `timeoutSeconds` a watch lasts between once and twice this (upstream: `--min-request-timeout`).
const MIN_WATCH_SECONDS: u64 = 1800;
const BOOKMARK_SECONDS: u64 = 60;
/// The last bookmark comes this long before the end, so that the client resumes from there.
const LAST_BOOKMARK_SECONDS: u64 = 2;
/// About how many bytes of events are gathered into one piece of the answer.
const PIECE_BYTES: usize = 64 * 1024;

/// Opens a watch and answers with its stream.
pub async fn watch(
    encoder: Encoder,
    store: &Arc<Store>,
    options: ListOptions,
    shutdown: tokio::sync::watch::Receiver<bool>,
) -> Result<Answer, Status> {
    // Upstream passes this error on as it is, without a reason.
    let revision = parse_resource_version(&options.resource_version).map_err(|e| Status::new(500, "", e))?;
    let scope = scope_of(store, &options.selection);
    let cache = store.cache();
    let initial = options.send_initial_events;
    let mut pending = VecDeque::new();
    let mut first_items = None;
    let opened = if initial == Some(true) {
        match options.resource_version.as_str() {
            "" => {
                store.catch_up().await?;
            }
            _ => {
                store.feed().reach(revision).await?;
            }
        }
        let (snapshot, watch) = cache.watch_from_state(scope, store.feed().progress());
        first_items = Some(snapshot);
        Ok(watch)
    } else if revision.0 == 0 {
        // No initial events are wanted: from now on.
        store.catch_up().await?;
        Ok(cache.watch_from_state(scope, store.feed().progress()).1)
    } else {
        cache.watch_since(scope, revision).map(|(backlog, watch)| {
            pending.extend(backlog);
            watch
        })
    };

    let timeout = match options.timeout_seconds {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds as u64),
        _ => Duration::from_secs_f64(MIN_WATCH_SECONDS as f64 * (1.0 + rand::rng().random::<f64>())),
    };
    let deadline = Instant::now() + timeout;
    let content_type = encoder.accepted.media.stream_type();
    let mut response = answer(StatusCode::OK, content_type, Bytes::new());
    let body: futures::stream::BoxStream<'static, std::io::Result<Bytes>> = match opened {
        Err(too_old) => {
            // The stream begins well and carries the refusal as its only event.
            let message = format!("too old resource version: {revision} ({})", too_old.oldest);
            let line = encoder.error_event(&Status::expired(message))?;
            Box::pin(stream::iter([Ok(line)]))
        }
        Ok(watch) => {
            let everything = options.selection.is_everything();
            let plain = encoder.sends_plain_lines() && everything;
            let stream = Stream {
                initial: first_items.map(|s| Initial::new(store, s, &options.selection)),
                ends_initial_events: options.allow_watch_bookmarks && initial == Some(true),
                encoder,
                store: store.clone(),
                watch,
                selection: options.selection,
                bookmarks: options.allow_watch_bookmarks,
                plain,
                pending,
                deadline,
                next_bookmark: Instant::now() + Duration::from_secs(BOOKMARK_SECONDS),
                alarm: None,
                shutdown,
                seen: revision,
                first: true,
                // A watch shorter than that has no use for one.
                last_bookmark_sent: timeout <= Duration::from_secs(LAST_BOOKMARK_SECONDS),
            };
            Box::pin(stream::unfold(stream, |mut s| async move { s.next().await.map(|item| (item, s)) }))
        }
    };
    *response.body_mut() = Body::Stream(body);
    Ok(response)
}

/// The narrowest index that covers the selection.
fn scope_of(store: &Store, selection: &Selection) -> Scope {
    let namespace = selection.namespace.as_str();
    match selection.name() {
        Some(name) if !store.hub.namespaced => return Scope::Key(store.key("", name)),
        Some(name) if !namespace.is_empty() => return Scope::Key(store.key(namespace, name)),
        _ => {}
    }
    if let Some(node) = selection.fields.exact_match("spec.nodeName").filter(|n| !n.is_empty()) {
        return Scope::Node(node.into());
    }
    match namespace {
        "" => Scope::All,
        namespace => Scope::Namespace(namespace.into()),
    }
}

/// The state that is sent first.
struct Initial {
    objects: std::vec::IntoIter<Arc<Object>>,
    revision: Revision,
}

impl Initial {
    fn new(store: &Store, snapshot: Snapshot, selection: &Selection) -> Self {
        let page = crate::list::select(store, &snapshot, selection, None, None);
        Self { objects: page.objects.into_iter(), revision: snapshot.revision }
    }
}

/// Why a watch wakes without an event.
enum Alarm {
    Bookmark,
    LastBookmark,
    End,
}

struct Stream {
    encoder: Encoder,
    store: Arc<Store>,
    watch: Watch,
    selection: Selection,
    initial: Option<Initial>,
    /// A bookmark says where the initial events end.
    ends_initial_events: bool,
    pending: VecDeque<Arc<Event>>,
    bookmarks: bool,
    /// Events go out as the line that is made once for all.
    plain: bool,
    deadline: Instant,
    next_bookmark: Instant,
    /// What the watch waits for beside events: made once, not for every event.
    alarm: Option<BoxFuture<'static, Alarm>>,
    shutdown: tokio::sync::watch::Receiver<bool>,
    /// Everything up to here was sent or is not for this watcher.
    seen: Revision,
    /// No event with table columns has been sent.
    first: bool,
    last_bookmark_sent: bool,
}

impl Stream {
    /// The next piece; none at the end of the watch.
    async fn next(&mut self) -> Option<std::io::Result<Bytes>> {
        loop {
            if self.initial.is_some() {
                match self.initial_piece() {
                    Ok(piece) if piece.is_empty() => {}
                    piece => return Some(piece),
                }
            }
            let mut out = Vec::new();
            let mut single = None;
            while let Some(event) = self.pending.pop_front() {
                match self.line(&event) {
                    Ok(Some(line)) if out.is_empty() && single.is_none() => single = Some(line),
                    Ok(Some(line)) => {
                        if let Some(first) = single.take() {
                            out.extend_from_slice(&first);
                        }
                        out.extend_from_slice(&line);
                    }
                    Ok(None) => {}
                    Err(status) => return self.fail(&status),
                }
                if out.len() > PIECE_BYTES {
                    break;
                }
            }
            if let Some(line) = single {
                return Some(Ok(line));
            }
            if !out.is_empty() {
                return Some(Ok(out.into()));
            }
            let alarm = match &mut self.alarm {
                Some(alarm) => alarm,
                None => {
                    let alarm = self.next_alarm();
                    self.alarm.insert(alarm)
                }
            };
            tokio::select! {
                biased;
                event = self.watch.events.recv() => {
                    self.pending.push_back(event?);
                    while let Ok(event) = self.watch.events.try_recv() {
                        self.pending.push_back(event);
                    }
                }
                alarm = alarm => {
                    self.alarm = None;
                    match alarm {
                        Alarm::End => return None,
                        Alarm::LastBookmark => self.last_bookmark_sent = true,
                        Alarm::Bookmark => {
                            self.next_bookmark = Instant::now() + Duration::from_secs(BOOKMARK_SECONDS);
                        }
                    }
                    if let Some(line) = self.bookmark() {
                        return Some(line);
                    }
                }
            }
        }
    }

    /// The soonest of: the end of the watch or of the server, the next bookmark, the one before the end.
    fn next_alarm(&self) -> BoxFuture<'static, Alarm> {
        let mut soonest = (self.deadline, Alarm::End);
        if self.bookmarks {
            let last = self.deadline.checked_sub(Duration::from_secs(LAST_BOOKMARK_SECONDS));
            let last = last.filter(|_| !self.last_bookmark_sent).map(|at| (at, Alarm::LastBookmark));
            for other in last.into_iter().chain([(self.next_bookmark, Alarm::Bookmark)]) {
                if other.0 < soonest.0 {
                    soonest = other;
                }
            }
        }
        let mut shutdown = self.shutdown.clone();
        Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep_until(soonest.0) => soonest.1,
                _ = shutdown.wait_for(|stop| *stop) => Alarm::End,
            }
        })
    }

    fn initial_piece(&mut self) -> std::io::Result<Bytes> {
        let Some(initial) = &mut self.initial else { return Ok(Bytes::new()) };
        let mut out = Vec::new();
        for object in initial.objects.by_ref() {
            match self.encoder.event("ADDED", &object, self.first) {
                Ok(line) => out.extend_from_slice(&line),
                Err(status) => return Err(std::io::Error::other(status)),
            }
            self.first = false;
            if out.len() > PIECE_BYTES {
                return Ok(out.into());
            }
        }
        self.seen = initial.revision;
        self.initial = None;
        if self.ends_initial_events {
            let line = self.encoder.bookmark(self.seen, true, self.first).map_err(std::io::Error::other)?;
            out.extend_from_slice(&line);
            self.first = false;
        }
        Ok(out.into())
    }

    /// The event as this watcher sees it.
    fn line(&mut self, event: &Event) -> Result<Option<Bytes>, Status> {
        if event.revision <= self.seen {
            return Ok(None);
        }
        if self.plain {
            return Ok(Some(event.line()));
        }
        let selection = &self.selection;
        let Some((kind, object)) = event.through(|o| selection.matches(o)) else { return Ok(None) };
        let line = self.encoder.event(EventKind::as_str(kind), &object, self.first)?;
        self.first = false;
        Ok(Some(line))
    }

    /// A bookmark at what the caches have reached, once nothing before it is left to send.
    fn bookmark(&mut self) -> Option<std::io::Result<Bytes>> {
        // Progress is read before the queue is found empty: what it covers was queued before.
        let progress = self.store.feed().progress();
        while let Ok(event) = self.watch.events.try_recv() {
            self.pending.push_back(event);
        }
        if !self.pending.is_empty() {
            return None;
        }
        let line = self.encoder.bookmark(progress.max(self.seen), false, self.first);
        self.first = false;
        Some(line.map_err(std::io::Error::other))
    }

    fn fail(&mut self, status: &Status) -> Option<std::io::Result<Bytes>> {
        self.deadline = Instant::now();
        self.bookmarks = false;
        self.alarm = None;
        Some(self.encoder.error_event(status).map_err(std::io::Error::other))
    }
}
