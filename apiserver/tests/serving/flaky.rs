//! A store with ill luck: it refuses to list some keys a few times, as one does that is out of reach for a moment, and somebody
//! else is always the first to delete others.

use async_trait::async_trait;
use coxswain_storage::embedded::Embedded;
use coxswain_storage::{Changes, Entry, Error, ListOptions, Op, Page, Result, Revision, Storage, Write};
use futures::stream::BoxStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub struct Flaky {
    pub inner: Embedded,
    /// Lists of keys with this in their names are refused,
    pub refused: &'static str,
    /// so many times.
    pub left: AtomicUsize,
    /// Keys with this in their names are gone by the time that their deletion is asked for.
    pub raced: &'static str,
}

impl Flaky {
    pub fn new(inner: Embedded) -> Self {
        Self { inner, refused: "", left: AtomicUsize::new(0), raced: "-" }
    }
}

#[async_trait]
impl Storage for Flaky {
    async fn commit(&self, batch: Vec<Write>) -> Result<Revision> {
        if batch.iter().any(|write| matches!(write.op, Op::Delete) && write.key.contains(self.raced)) {
            self.inner.commit(batch.clone()).await?;
        }
        self.inner.commit(batch).await
    }

    async fn get(&self, key: &str, at: Option<Revision>) -> Result<(Option<Entry>, Revision)> {
        self.inner.get(key, at).await
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page> {
        let one_less = |left: usize| left.checked_sub(1);
        let is_refused = prefix.contains(self.refused);
        if is_refused && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
            return Err(Error::Unavailable { operation: "list", source: "out of reach for a moment".into() });
        }
        self.inner.list(prefix, options).await
    }

    async fn changes(&self, prefix: &str, after: Revision) -> Result<BoxStream<'static, Result<Changes>>> {
        self.inner.changes(prefix, after).await
    }

    async fn request_progress(&self) -> Result<()> {
        self.inner.request_progress().await
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.inner.compact(revision).await
    }

    async fn current_revision(&self) -> Result<Revision> {
        self.inner.current_revision().await
    }

    async fn expiring(&self, after: Revision) -> Result<Vec<(Arc<str>, u64)>> {
        self.inner.expiring(after).await
    }
}
