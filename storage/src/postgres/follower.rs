//! Following the other servers: the database tells of commits, and what is new goes to this server's readers in the order
//! of revisions.

use super::connection::error;
use super::{RECONNECT_PAUSE, Shared, unavailable};
use crate::feed::History;
use crate::{Changes, Error, Result};
use futures::stream::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::AsyncMessage;

const PROGRESS_PAUSE: Duration = Duration::from_millis(200);

impl Shared {
    /// Hands this server's own commits to the follower, which need not read them from the database then.
    pub fn publish_own(&self, commits: Vec<Arc<Changes>>) {
        let mut own = self.own.lock();
        let follows =
            own.last().is_none_or(|last| commits.first().is_some_and(|c| c.revision.0 == last.revision.0 + 1));
        if !follows {
            own.clear();
        }
        own.extend(commits);
        drop(own);
        self.news.notify_one();
    }

    /// Keeps a connection on which the database tells of commits.
    pub async fn listen(self: Arc<Self>) {
        loop {
            if let Err(error) = self.listen_once().await {
                tracing::warn!(%error, "no word of other servers' commits; trying again");
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    async fn listen_once(&self) -> Result<()> {
        let failed = |e| error("listen", e);
        let (client, mut connection) = self.connections.raw().await.map_err(failed)?;
        let mut messages = futures::stream::poll_fn(move |context| connection.poll_message(context));
        let listen = format!("LISTEN {}", self.schema);
        let mut listening = std::pin::pin!(client.batch_execute(&listen));
        let mut begun = false;
        loop {
            tokio::select! {
                result = &mut listening, if !begun => {
                    result.map_err(failed)?;
                    begun = true;
                    // Whatever happened while nobody listened.
                    self.news.notify_one();
                }
                message = messages.next() => match message {
                    Some(Ok(AsyncMessage::Notification(_))) => self.news.notify_one(),
                    Some(Ok(_)) => {}
                    Some(Err(e)) => return Err(failed(e)),
                    None => return Err(unavailable("listen", "the connection was closed")),
                },
            }
        }
    }

    /// Gives the readers what is new, in order.
    pub async fn follow(self: Arc<Self>) {
        loop {
            self.news.notified().await;
            while let Err(error) = self.advance().await {
                tracing::warn!(%error, "changes could not be read; trying again");
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        }
    }

    async fn advance(&self) -> Result<()> {
        loop {
            let newest = self.feed.newest();
            let own = std::mem::take(&mut *self.own.lock());
            let own: Vec<_> = own.into_iter().filter(|c| c.revision > newest).collect();
            if own.first().is_some_and(|c| c.revision.0 == newest.0 + 1) {
                self.feed.publish(own);
                continue;
            }
            match self.connections.changes_after("", newest).await {
                Ok((_, reached)) if reached == newest => return Ok(()),
                Ok((commits, _)) => {
                    let gapless = commits.iter().zip(newest.0 + 1..).all(|(commit, due)| commit.revision.0 == due);
                    if !gapless {
                        let what = format!("a change after revision {newest} is missing");
                        return Err(Error::Corrupt { place: "the table history".to_owned(), what });
                    }
                    self.feed.publish(commits.into_iter().map(Arc::new).collect());
                }
                // This server was cut off for longer than history is kept; its readers learn it from the history.
                Err(Error::Compacted { .. }) => self.feed.skip_to(self.connections.marks().await?.revision),
                Err(error) => return Err(error),
            }
        }
    }

    pub async fn tell_progress(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PROGRESS_PAUSE).await;
            self.feed.wake_behind();
        }
    }
}
