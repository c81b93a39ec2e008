//! One writer at a fixed rate, many watchers of its namespace: how long an event takes to reach them all.

use super::{CONFIG_MAPS, Figure, each, figure, namespace};
use crate::load::{Call, Server, Settings, at};
use crate::process::own_cpu_seconds;
use anyhow::{Context, Result, bail};
use http_body_util::BodyExt;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of data in each object that is written.
const FILL: usize = 1000;
/// Writes that may be unanswered at a time; beyond it the rate falls behind, which the figures then say.
const WRITES_IN_FLIGHT: usize = 64;
/// How long the last events may take.
const DRAIN: Duration = Duration::from_secs(10);

pub async fn run(server: &Arc<Server>, load: &Settings) -> Result<Vec<Figure>> {
    namespace(server).await?;
    let epoch = Instant::now();
    let seen = Arc::new(AtomicU64::new(0));
    let mut watchers = Vec::with_capacity(load.watchers);
    for i in 0..load.watchers {
        let response = server.start(i, Call::get(format!("{CONFIG_MAPS}?watch=1&timeoutSeconds=600")))?.await?;
        if response.status() != 200 {
            bail!("watching: {}", response.status());
        }
        let seen = seen.clone();
        watchers.push(tokio::spawn(async move { Watcher::new(epoch).follow(response.into_body(), &seen).await }));
    }
    let interval = Duration::from_secs_f64(1.0 / load.writes_per_second);
    let (used, own) = (server.processes.cpu_seconds(), own_cpu_seconds());
    let start = Instant::now();
    let end = start + Duration::from_secs(load.seconds);
    let places = Arc::new(tokio::sync::Semaphore::new(WRITES_IN_FLIGHT));
    let fill = Arc::new("x".repeat(FILL));
    let mut writes = 0u64;
    let mut answers = tokio::task::JoinSet::new();
    while Instant::now() < end {
        tokio::time::sleep_until((start + interval * writes as u32).into()).await;
        let place = places.clone().acquire_owned().await?;
        let (server, fill, number) = (server.clone(), fill.clone(), writes);
        writes += 1;
        answers.spawn(async move {
            let sent = epoch.elapsed().as_micros() as u64;
            let body =
                json!({"metadata": {"name": format!("w-{number}")}, "data": {"at": sent.to_string(), "fill": *fill}});
            let done = server.send(number as usize, Call::post(CONFIG_MAPS, body.to_string().into_bytes())).await;
            drop(place);
            done
        });
    }
    while let Some(answer) = answers.join_next().await {
        answer??;
    }
    let took = start.elapsed();
    let wanted = writes * load.watchers as u64;
    let drained = Instant::now() + DRAIN;
    while seen.load(Ordering::Relaxed) < wanted && Instant::now() < drained {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let whole = start.elapsed().as_secs_f64();
    let (used, own) = (server.processes.cpu_seconds() - used, own_cpu_seconds() - own);
    let received = seen.load(Ordering::Relaxed);
    // The end of the objects ends the watches of those who have seen all.
    each(server, writes as usize, |i| Call::delete(format!("{CONFIG_MAPS}/w-{i}"))).await?;
    let mut delays: Vec<Duration> = Vec::with_capacity(received as usize);
    for watcher in watchers {
        if let Ok(result) = tokio::time::timeout(DRAIN, watcher).await {
            delays.extend(result??.into_iter().map(|us| Duration::from_micros(us.into())));
        }
    }
    delays.sort_unstable();
    if received < wanted {
        bail!("only {received} of {wanted} events came: watchers were cut off, or the server cannot keep up");
    }
    let mut figures = vec![
        figure("watchers", "", load.watchers as f64),
        figure("writes", "/s", writes as f64 / took.as_secs_f64()),
        figure("events", "/s", received as f64 / whole),
        figure("delay p50", "ms", at(&delays, 0.5)),
        figure("delay p99", "ms", at(&delays, 0.99)),
    ];
    if server.processes.is_known() {
        figures.push(figure("server CPU an event", "us", used * 1e6 / received as f64));
    }
    figures.push(figure("load generator", "cores", own / whole));
    Ok(figures)
}

/// Reads one watch stream: counts additions and notes how long each was under way.
struct Watcher {
    epoch: Instant,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    delays: Vec<u32>,
    mark: memchr::memmem::Finder<'static>,
    ended: bool,
}

impl Watcher {
    fn new(epoch: Instant) -> Self {
        let mark = memchr::memmem::Finder::new(b"\"at\":\"");
        Self { epoch, partial: Vec::new(), delays: Vec::new(), mark, ended: false }
    }

    async fn follow(mut self, mut body: hyper::body::Incoming, seen: &AtomicU64) -> Result<Vec<u32>> {
        while !self.ended
            && let Some(frame) = body.frame().await
        {
            let frame = frame.context("a watch broke")?;
            let Some(data) = frame.data_ref() else { continue };
            let before = self.delays.len();
            self.piece(data);
            seen.fetch_add((self.delays.len() - before) as u64, Ordering::Relaxed);
        }
        Ok(self.delays)
    }

    fn piece(&mut self, mut data: &[u8]) {
        let now = self.epoch.elapsed().as_micros() as u64;
        while let Some(end) = memchr::memchr(b'\n', data) {
            let (line, rest) = data.split_at(end + 1);
            if self.partial.is_empty() {
                self.line(line, now);
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.line(&whole, now);
                whole.clear();
                self.partial = whole;
            }
            data = rest;
        }
        self.partial.extend_from_slice(data);
    }

    fn line(&mut self, line: &[u8], now: u64) {
        if line.starts_with(b"{\"type\":\"DELETED\"") {
            self.ended = true;
            return;
        }
        let Some(at) = self.mark.find(line).map(|at| at + self.mark.needle().len()) else { return };
        let digits = line[at..].iter().take_while(|b| b.is_ascii_digit());
        let sent = digits.fold(0u64, |n, b| n * 10 + u64::from(b - b'0'));
        self.delays.push(u32::try_from(now.saturating_sub(sent)).unwrap_or(u32::MAX));
    }
}
