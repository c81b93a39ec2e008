//! Runs a controller's workers over its queue: retries, a span for each key, and panics that cost one key one retry.

use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::metrics;
use crate::queue::WorkQueue;

/// Handles keys with `workers` tasks until `shutdown`. A key whose reconcile fails or panics is added again, rate limited.
pub async fn run_controller<T, F, Fut, E>(
    controller: &'static str,
    queue: WorkQueue<T>,
    workers: usize,
    shutdown: CancellationToken,
    reconcile: F,
) where
    T: Clone + Eq + Hash + Display + Send + Sync + 'static,
    F: Fn(T) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<(), E>> + Send,
    E: Display + Send,
{
    show_queue(controller, &queue);
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        let queue = queue.clone();
        let reconcile = reconcile.clone();
        tasks.spawn(async move {
            while let Some(key) = queue.get().await {
                let span = tracing::debug_span!("reconcile", controller, key = %key);
                let result =
                    AssertUnwindSafe(async { reconcile(key.clone()).await }).catch_unwind().instrument(span).await;
                match result {
                    Ok(Ok(())) => queue.forget(&key),
                    Ok(Err(error)) => {
                        tracing::debug!(controller, %key, %error, "reconcile failed; it will be tried again");
                        queue.add_rate_limited(key.clone());
                    }
                    Err(_) => {
                        tracing::error!(controller, %key, "reconcile panicked; it will be tried again");
                        queue.add_rate_limited(key.clone());
                    }
                }
                queue.done(&key);
            }
        });
    }
    shutdown.cancelled().await;
    queue.shut_down();
    while tasks.join_next().await.is_some() {}
}

fn show_queue<T: Clone + Eq + Hash + Send + Sync + 'static>(controller: &str, queue: &WorkQueue<T>) {
    let labels = format!("name={controller:?}");
    let shown = queue.clone();
    metrics::register("workqueue_depth", "[STABLE] Current depth of workqueue", "gauge", labels.clone(), move || {
        shown.len() as f64
    });
    let shown = queue.clone();
    let help = "[STABLE] Total number of adds handled by workqueue";
    metrics::register("workqueue_adds_total", help, "counter", labels.clone(), move || shown.adds() as f64);
    let shown = queue.clone();
    let help = "[STABLE] Total number of retries handled by workqueue";
    metrics::register("workqueue_retries_total", help, "counter", labels, move || shown.retries_total() as f64);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failed_and_panicking_keys_are_tried_again() {
        let queue = WorkQueue::new();
        queue.add("a");
        let calls = Arc::new(AtomicUsize::new(0));
        let shutdown = CancellationToken::new();
        let (counted, ended) = (calls.clone(), shutdown.clone());
        run_controller("test", queue, 2, shutdown, move |_key: &str| {
            let (calls, shutdown) = (counted.clone(), ended.clone());
            async move {
                match calls.fetch_add(1, Ordering::SeqCst) {
                    0 => panic!("this panic is part of the test"),
                    1 => Err("not yet"),
                    _ => {
                        shutdown.cancel();
                        Ok(())
                    }
                }
            }
        })
        .await;
        assert_eq!(calls.load(Ordering::SeqCst), 3);
    }
}
