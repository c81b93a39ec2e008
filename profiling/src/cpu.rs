//! A CPU profile: one thread of its own takes the samples away while they come, and makes the file when the time is over
//! (Go: `runtime/pprof`'s `StartCPUProfile` and `StopCPUProfile`).

use crate::image::{self, Mapped, Unwinder};
use crate::pprof::{Function, Line, Location, Mapping, Profile, Sample, Strings, ValueType};
use crate::sampler::{PERIOD, Sampler};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;

/// How often samples are taken away. There must be room for those that come meanwhile on many processors.
const DRAIN_PERIOD: Duration = Duration::from_millis(10);
/// Different stacks in a profile. Samples of further ones count as lost.
const STACKS_MAX: usize = 1 << 17;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cpu profiling already in use")]
    InUse,
    #[error("{0}")]
    Start(#[from] io::Error),
    #[error("the profile was given up")]
    GivenUp,
}

/// Whether a profile is being taken: the process has one timer.
static IN_USE: AtomicBool = AtomicBool::new(false);

struct Turn;

impl Turn {
    fn take() -> Result<Self, Error> {
        if IN_USE.swap(true, Ordering::AcqRel) { Err(Error::InUse) } else { Ok(Turn) }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        IN_USE.store(false, Ordering::Release);
    }
}

/// Profiles this process and returns the file. There is one profile at a time; it ends when the future is dropped.
pub async fn profile(duration: Duration) -> Result<Vec<u8>, Error> {
    let turn = Turn::take()?;
    let (end, ended) = mpsc::channel();
    let (started, has_started) = oneshot::channel();
    let (done, is_done) = oneshot::channel();
    std::thread::Builder::new().name("cpu-profile".to_owned()).spawn(move || {
        let collector = match Collector::start() {
            Ok(collector) => collector,
            Err(error) => {
                drop(turn);
                let _ = started.send(Err(error));
                return;
            }
        };
        let _ = started.send(Ok(()));
        let file = collector.collect(&ended).map(|collected| collected.file());
        // Who has this profile may ask for the next one.
        drop(turn);
        if let Some(file) = file {
            let _ = done.send(file);
        }
    })?;
    has_started.await.map_err(|_| Error::GivenUp)??;
    tokio::time::sleep(duration).await;
    let _ = end.send(());
    is_done.await.map_err(|_| Error::GivenUp)
}

struct Collector {
    began: (SystemTime, Instant),
    sampler: Sampler,
    unwinder: Unwinder,
    collected: Collected,
}

/// Stacks with the number of their samples.
struct Collected {
    files: Vec<Mapped>,
    stacks: HashMap<Vec<u64>, i64>,
    lost: u64,
    time: SystemTime,
    duration: Duration,
}

impl Collector {
    fn start() -> io::Result<Self> {
        let files = image::mapped()?;
        let unwinder = Unwinder::new(&files);
        let began = (SystemTime::now(), Instant::now());
        let collected = Collected { files, stacks: HashMap::new(), lost: 0, time: began.0, duration: Duration::ZERO };
        Ok(Collector { began, sampler: Sampler::start()?, unwinder, collected })
    }

    /// Collects until it is told to end; nothing if nobody waits for the profile any more.
    fn collect(mut self, ended: &mpsc::Receiver<()>) -> Option<Collected> {
        loop {
            match ended.recv_timeout(DRAIN_PERIOD) {
                Err(RecvTimeoutError::Timeout) => self.drain(),
                Err(RecvTimeoutError::Disconnected) => return None,
                Ok(()) => break,
            }
        }
        self.drain();
        self.collected.duration = self.began.1.elapsed();
        self.collected.lost += self.sampler.lost();
        Some(self.collected)
    }

    fn drain(&mut self) {
        let Collected { stacks, lost, .. } = &mut self.collected;
        self.sampler.drain(|sample| {
            let stack = self.unwinder.stack(sample);
            let full = stacks.len() >= STACKS_MAX;
            match stacks.entry(stack) {
                Entry::Occupied(mut count) => *count.get_mut() += 1,
                Entry::Vacant(_) if full => *lost += 1,
                Entry::Vacant(entry) => drop(entry.insert(1)),
            }
        });
    }
}

impl Collected {
    fn file(&self) -> Vec<u8> {
        let mut strings = Strings::new();
        let samples = ValueType { kind: strings.number("samples"), unit: strings.number("count") };
        let time = ValueType { kind: strings.number("cpu"), unit: strings.number("nanoseconds") };
        let period = PERIOD.as_nanos() as i64;
        let mut profile = Profile {
            sample_type: vec![samples, time],
            period_type: Some(time),
            period,
            time_nanos: self.time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as i64,
            duration_nanos: self.duration.as_nanos() as i64,
            ..Profile::default()
        };
        profile.mapping = (1..)
            .zip(&self.files)
            .map(|(id, file)| Mapping {
                id,
                memory_start: file.code.start,
                memory_limit: file.code.end,
                file_offset: file.offset,
                filename: strings.number(&file.path),
                has_functions: true,
            })
            .collect();
        let mut addresses: Vec<u64> = self.stacks.keys().flatten().copied().collect();
        addresses.sort_unstable();
        addresses.dedup();
        let names = image::names(&self.files, &addresses);
        let mut functions: HashMap<i64, u64> = HashMap::new();
        for (at, (address, name)) in addresses.iter().zip(names).enumerate() {
            let line = name.map(|name| {
                // Tools shorten a name that is not told from its symbol.
                let (name, system_name) = (strings.number(&name.readable), strings.number(&name.symbol));
                let next = functions.len() as u64 + 1;
                let id = *functions.entry(system_name).or_insert(next);
                if id == next {
                    profile.function.push(Function { id, name, system_name });
                }
                Line { function_id: id }
            });
            let mapping = self.files.iter().position(|file| file.code.contains(address));
            profile.location.push(Location {
                id: at as u64 + 1,
                mapping_id: mapping.map_or(0, |at| at as u64 + 1),
                address: *address,
                line: line.into_iter().collect(),
            });
        }
        let location = |address: &u64| addresses.binary_search(address).map_or(0, |at| at as u64 + 1);
        profile.sample = self
            .stacks
            .iter()
            .map(|(stack, count)| Sample {
                location_id: stack.iter().map(location).collect(),
                value: vec![*count, count.saturating_mul(period)],
            })
            .collect();
        if self.lost > 0 {
            profile.comment.push(strings.number(&format!("{} samples were lost", self.lost)));
        }
        profile.string_table = strings.into_table();
        profile.gzipped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use std::hint::black_box;
    use std::io::Read;
    use std::sync::Arc;

    #[inline(never)]
    fn burns_processor_time(until: &AtomicBool) -> u64 {
        let mut sum = 0u64;
        while !until.load(Ordering::Relaxed) {
            for number in 0..1000u64 {
                sum = black_box(sum.wrapping_mul(31).wrapping_add(number));
            }
        }
        sum
    }

    #[inline(never)]
    fn calls_what_burns(until: &AtomicBool) -> u64 {
        black_box(burns_processor_time(until))
    }

    fn parsed(file: &[u8]) -> Profile {
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).expect("a gzip file");
        Profile::decode(bytes.as_slice()).expect("a profile")
    }

    /// The functions of a stack, the innermost first.
    fn functions<'a>(profile: &'a Profile, sample: &Sample) -> Vec<&'a str> {
        let locations = sample.location_id.iter().map(|id| &profile.location[*id as usize - 1]);
        let functions = locations.flat_map(|l| &l.line).map(|line| &profile.function[line.function_id as usize - 1]);
        functions.map(|f| profile.string_table[f.name as usize].as_str()).collect()
    }

    // One test, as there is one profile at a time.
    #[tokio::test]
    async fn a_profile_shows_where_the_time_goes() {
        let until = Arc::new(AtomicBool::new(false));
        let busy = std::thread::spawn({
            let until = until.clone();
            move || calls_what_burns(&until)
        });
        let first = tokio::spawn(profile(Duration::from_millis(1500)));
        tokio::time::sleep(Duration::from_millis(300)).await;
        let second = profile(Duration::from_millis(1)).await;
        assert_eq!(second.unwrap_err().to_string(), "cpu profiling already in use");
        let profile_file = first.await.expect("no panic").expect("a profile");

        let profile = parsed(&profile_file);
        assert_eq!(profile.period, 10_000_000);
        assert!(profile.duration_nanos >= 1_500_000_000, "{}", profile.duration_nanos);
        let all: i64 = profile.sample.iter().map(|sample| sample.value[0]).sum();
        let of_ours = |sample: &&Sample| {
            let names = functions(&profile, sample);
            let at = |end: &str| names.iter().position(|name| name.ends_with(end));
            let (inner, outer) = (at("cpu::tests::burns_processor_time"), at("cpu::tests::calls_what_burns"));
            inner.is_some() && inner < outer
        };
        let ours: i64 = profile.sample.iter().filter(of_ours).map(|sample| sample.value[0]).sum();
        // A machine under load gives the thread less than all of the time.
        assert!(ours >= 10, "{ours} of {all} samples");
        assert!(ours * 2 > all, "{ours} of {all} samples");

        // Who goes away ends the profile, and the next may have its turn.
        let given_up = tokio::time::timeout(Duration::from_millis(50), super::profile(Duration::from_secs(3600))).await;
        assert!(given_up.is_err());
        let mut tries = 0;
        while let Err(Error::InUse) = super::profile(Duration::from_millis(1)).await {
            tries += 1;
            assert!(tries < 500, "the profile goes on for nobody");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        until.store(true, Ordering::Relaxed);
        busy.join().expect("no panic");
    }
}
