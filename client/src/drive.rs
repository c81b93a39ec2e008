//! The shape all controllers share: informers feed a queue, workers take from it.

use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use crate::runner::run_controller;
use crate::{Event, Informer, WorkQueue};
use tokio_util::sync::CancellationToken;

/// Hands every change of an informer to `handle` until it stops.
pub async fn feed<P: Send + Sync + 'static>(informer: &Informer<P>, mut handle: impl FnMut(Event<P>)) {
    let mut events = informer.subscribe();
    while let Some(event) = events.next().await {
        handle(event);
    }
}

/// Runs a controller's workers and its feeds until `shutdown`.
pub async fn drive<C, T, F, Fut, E>(
    name: &'static str,
    controller: Arc<C>,
    queue: WorkQueue<T>,
    workers: usize,
    shutdown: CancellationToken,
    reconcile: F,
    feeds: impl Future,
) where
    C: Send + Sync + 'static,
    T: Clone + Eq + Hash + Display + Send + Sync + 'static,
    F: Fn(Arc<C>, T) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<(), E>> + Send,
    E: Display + Send,
{
    let workers = run_controller(name, queue, workers, shutdown.clone(), move |key| reconcile(controller.clone(), key));
    tokio::join!(workers, async {
        tokio::select! { _ = feeds => {}, () = shutdown.cancelled() => {} }
    });
}

/// Calls `tick` every `period`, beginning now, until `shutdown`. Rounds do not overlap.
pub async fn every<F, Fut>(period: std::time::Duration, shutdown: &CancellationToken, mut tick: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = ()>,
{
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interval.tick() => tick().await,
            () = shutdown.cancelled() => return,
        }
    }
}
