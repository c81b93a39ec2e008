//! Lists of many pods, whole and by pages.

use super::{Figure, PODS, costs_of, delete_pods, figure, figures_of, make_pods};
use crate::load::{Call, Server, Settings};
use anyhow::Result;
use std::sync::Arc;

/// Lists under way at once.
const WHOLE: usize = 4;
const PAGES: usize = 8;

pub async fn whole(
    server: &Arc<Server>,
    load: &Settings,
    headers: &'static [(&'static str, &'static str)],
) -> Result<Vec<Figure>> {
    make_pods(server, load.objects).await?;
    // The first list after a change may cost more than those that follow: it is a figure of its own.
    let first = std::time::Instant::now();
    server.send(0, Call::get(PODS).with(headers)).await?;
    let first = first.elapsed().as_secs_f64() * 1000.0;
    let outcome = server.drive(load.seconds, WHOLE, move |_| Some(Call::get(PODS).with(headers))).await?;
    delete_pods(server, load.objects).await?;
    let mut figures = vec![
        figure("first list", "ms", first),
        figure("lists", "/s", outcome.per_second()),
        figure("bytes", "MB/s", outcome.bytes_per_second() / 1e6),
        figure("p99", "ms", outcome.p99_ms),
    ];
    figures.extend(costs_of(&outcome));
    Ok(figures)
}

pub async fn limited(server: &Arc<Server>, load: &Settings) -> Result<Vec<Figure>> {
    make_pods(server, load.objects).await?;
    let outcome = server.drive(load.seconds, PAGES, |_| Some(Call::get(format!("{PODS}?limit=500")))).await?;
    delete_pods(server, load.objects).await?;
    Ok(figures_of(&outcome))
}
