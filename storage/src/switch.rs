//! The store that a server works with, which may be another one tomorrow: when the data moves (see [`crate::migrate`]), the
//! server goes with it, without a restart. Writes wait for the moment of the move, reads go on, and streams of changes end
//! and are begun again on the other store, where they were.

use crate::moved::{self, Marker};
use crate::transfer::Import;
use crate::{Changes, Entry, Error, Expect, ListOptions, Page, Result, Revision, Storage, Write};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Opens a store that exists, by its address.
pub type Opener = Arc<dyn Fn(String) -> BoxFuture<'static, Result<Arc<dyn Storage>>> + Send + Sync>;

/// How long a write waits for the move; longer ones are refused, and the client tries again.
const WRITE_PATIENCE: Duration = Duration::from_millis(900);
/// How long a server that starts waits for a move that is under way.
const START_PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);
/// Moves followed at a start; more are a circle.
const MOVES_MAX: usize = 8;

pub struct Switch {
    current: Arc<Current>,
    follower: JoinHandle<()>,
}

struct Current {
    store: ArcSwap<Inner>,
    /// Counts the moves.
    moves: watch::Sender<u64>,
    opener: Opener,
}

struct Inner {
    store: Arc<dyn Storage>,
    /// Whether the data has gone elsewhere.
    left: watch::Sender<bool>,
}

impl Inner {
    fn new(store: Arc<dyn Storage>) -> Inner {
        Inner { store, left: watch::Sender::new(false) }
    }
}

impl Switch {
    /// Begins with `store`, or with the one that its data has moved to.
    pub async fn new(store: Arc<dyn Storage>, opener: Opener) -> Result<Switch> {
        let mut store = store;
        for _ in 0..MOVES_MAX {
            let Some(marker) = settled(&*store).await? else {
                let current = Arc::new(Current {
                    store: ArcSwap::from_pointee(Inner::new(store)),
                    moves: watch::Sender::new(0),
                    opener,
                });
                let follower = tokio::spawn(follow(Arc::downgrade(&current)));
                return Ok(Switch { current, follower });
            };
            let to = marker.to.clone().unwrap_or_default();
            tracing::warn!(
                to = crate::address::without_password(&to),
                "the data of this store has moved, and is used where it is now; the flags should say so"
            );
            store = opener(to).await?;
            check(&*store, &marker).await?;
        }
        Err(Error::Unavailable { operation: "open", source: "the data has moved too often".into() })
    }

    fn inner(&self) -> arc_swap::Guard<Arc<Inner>> {
        self.current.store.load()
    }

    /// The store in use now.
    pub fn store(&self) -> Arc<dyn Storage> {
        self.inner().store.clone()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// The marker of a store whose data has moved. One whose move has failed is taken away.
async fn settled(store: &dyn Storage) -> Result<Option<Marker>> {
    let begun = Instant::now();
    loop {
        let Some((marker, revision)) = moved::read(store).await? else { return Ok(None) };
        if marker.to.is_some() {
            return Ok(Some(marker));
        }
        if marker.has_failed() {
            match moved::remove(store, Expect::At(revision)).await {
                Ok(_) | Err(Error::Conflict { .. }) => continue,
                Err(error) => return Err(error),
            }
        }
        if begun.elapsed() > START_PATIENCE {
            return Err(Error::Moved(marker));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether the store that the marker names is the one that was filled.
async fn check(store: &dyn Storage, marker: &Marker) -> Result<()> {
    let now = store.current_revision().await?;
    if now.0 < marker.revision {
        let what = format!("it is at revision {now}, and the data moved there at {}", marker.revision);
        return Err(Error::Corrupt { place: marker.to.clone().unwrap_or_default(), what });
    }
    Ok(())
}

/// Watches the marker of whatever store is in use, and goes where it says.
async fn follow(current: std::sync::Weak<Current>) {
    loop {
        let Some(now) = current.upgrade() else { return };
        let inner = now.store.load_full();
        let opener = now.opener.clone();
        drop(now);
        let moved = match moved_away(&*inner.store, &opener).await {
            Ok(moved) => moved,
            Err(error) => {
                tracing::warn!(%error, "whether the data has moved is not known; looking again");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(now) = current.upgrade() else { return };
        tracing::info!("the data has moved; going on there");
        now.store.store(Arc::new(Inner::new(moved)));
        now.moves.send_modify(|moves| *moves += 1);
        inner.left.send_replace(true);
    }
}

/// Waits until the data has moved, and opens the store where it is.
async fn moved_away(store: &dyn Storage, opener: &Opener) -> Result<Arc<dyn Storage>> {
    let key = store.marker_key();
    let mut changes = store.changes(&key, store.current_revision().await?).await?;
    loop {
        if let Some((marker, _)) = moved::read(store).await? {
            if let Some(to) = &marker.to {
                let opened = opener(to.clone()).await?;
                check(&*opened, &marker).await?;
                return Ok(opened);
            }
            // It is taken away when it has had its time; nobody else may be there to do it.
            let wait = Duration::from_millis(marker.patience_ms + 100);
            if tokio::time::timeout(wait, told(&mut changes)).await.is_err() {
                settled(store).await?;
                continue;
            }
        } else {
            told(&mut changes).await?;
        }
    }
}

/// Waits for a change of the marker.
async fn told(changes: &mut BoxStream<'static, Result<Changes>>) -> Result<()> {
    loop {
        match changes.next().await {
            Some(commit) if commit.as_ref().is_ok_and(|c| c.changes.is_empty()) => {}
            Some(commit) => return commit.map(drop),
            None => {
                return Err(Error::Unavailable { operation: "changes", source: "the stream ended".into() });
            }
        }
    }
}

#[async_trait]
impl Storage for Switch {
    async fn commit(&self, batch: Vec<Write>) -> Result<Revision> {
        let mut moves = self.current.moves.subscribe();
        let begun = Instant::now();
        loop {
            let result = self.inner().store.clone().commit(batch.clone()).await;
            let Err(Error::Moved(marker)) = result else { return result };
            let left = WRITE_PATIENCE.saturating_sub(begun.elapsed());
            // The move is awaited; that it was given up shows after a moment.
            let _ = tokio::time::timeout(left.min(Duration::from_millis(50)), moves.changed()).await;
            if left.is_zero() {
                return Err(Error::Moved(marker));
            }
        }
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<Entry>, Revision)> {
        self.store().get(key, at).await
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page> {
        self.store().list(prefix, options).await
    }

    async fn changes(&self, prefix: &str, after: Revision) -> Result<BoxStream<'static, Result<Changes>>> {
        let inner = self.current.store.load_full();
        let stream = inner.store.changes(prefix, after).await?;
        let mut left = inner.left.subscribe();
        Ok(stream.take_until(async move { left.wait_for(|left| *left).await.map(drop) }).boxed())
    }

    async fn request_progress(&self) -> Result<()> {
        self.store().request_progress().await
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.store().compact(revision).await
    }

    async fn current_revision(&self) -> Result<Revision> {
        self.store().current_revision().await
    }

    async fn size(&self) -> Result<Option<u64>> {
        self.store().size().await
    }

    async fn expiring(&self, after: Revision) -> Result<Vec<(Arc<str>, u64)>> {
        self.store().expiring(after).await
    }

    fn keeps_revisions(&self) -> bool {
        self.inner().store.keeps_revisions()
    }

    async fn import(&self, import: Import) -> Result<()> {
        self.store().import(import).await
    }

    fn marker_key(&self) -> String {
        self.store().marker_key()
    }
}
