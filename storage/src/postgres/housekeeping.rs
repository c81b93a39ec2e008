//! Housekeeping, in small steps: deleting what has expired, removing history that was kept long enough. Every server does
//! it, and what two do at once is done once.

use super::committer::Pending;
use super::{Shared, reads, statements, unavailable};
use crate::{Error, Expect, Op, Result, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Keys that expire in one commit, and changes forgotten in one step.
const EXPIRE_STEP: i64 = 100;
const PRUNE_STEP: i64 = 1_000;
const MAINTAIN_PAUSE: Duration = Duration::from_secs(1);

impl Shared {
    pub async fn maintain(self: Arc<Self>, queue: mpsc::WeakSender<Pending>, keep_history: Duration) {
        let room = Arc::new(Semaphore::new(1));
        loop {
            self.feed.trim();
            let more = match (self.expire(&queue, &room).await, self.prune(keep_history).await) {
                (Ok(expired), Ok(pruned)) => expired || pruned,
                (Err(error), _) | (_, Err(error)) => {
                    tracing::warn!(%error, "storage housekeeping failed; it is tried again");
                    false
                }
            };
            if !more {
                tokio::time::sleep(MAINTAIN_PAUSE).await;
            }
        }
    }

    async fn expire(&self, queue: &mpsc::WeakSender<Pending>, room: &Arc<Semaphore>) -> Result<bool> {
        let rows = self.connections.rows("expire", statements::EXPIRED, &[&EXPIRE_STEP]).await?;
        let delete = |row: &tokio_postgres::Row| Write {
            key: row.get::<_, &str>(0).into(),
            expect: Expect::At(reads::revision(row.get(1))),
            op: Op::Delete,
        };
        let batch: Vec<Write> = rows.iter().map(delete).collect();
        let (Some(queue), false) = (queue.upgrade(), batch.is_empty()) else { return Ok(false) };
        let closed = |_| unavailable("expire", "the store is closed");
        let room = room.clone().acquire_owned().await.map_err(closed)?;
        let (answer, result) = oneshot::channel();
        queue.send(Pending { batch, answer, room }).await.map_err(|_| unavailable("expire", "the store is closed"))?;
        match result.await {
            // Written anew or already deleted meanwhile, perhaps by another server; or the store has moved away.
            Ok(Err(Error::Conflict { .. } | Error::Moved(_))) => Ok(false),
            Ok(result) => result.map(|_| rows.len() as i64 == EXPIRE_STEP),
            Err(_) => Ok(false),
        }
    }

    async fn prune(&self, keep_history: Duration) -> Result<bool> {
        let keep = keep_history.as_millis() as i64;
        self.connections.rows("compact", statements::FORGET, &[&PRUNE_STEP, &keep]).await?;
        let removed = self.connections.rows("compact", statements::REMOVE, &[&PRUNE_STEP]).await?;
        Ok(removed.first().is_some_and(|row| row.get::<_, i64>(0) >= PRUNE_STEP))
    }
}
