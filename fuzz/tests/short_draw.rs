//! A short draw of every target: its seeds, what was found before, and a few thousand mutations of these. The draw is the
//! same every time; `dev/fuzz.sh` searches for longer, and so does this test with `FUZZ_SECONDS=600`, without its guidance.

use coxswain_fuzz::{TARGETS, Target};
use std::time::{Duration, Instant};

/// What one target may take; slow machines try fewer mutations.
const TIME_MAX: Duration = Duration::from_secs(3);
const MUTATIONS_MAX: usize = 3_000;
const BYTES_MAX: usize = 4_096;

/// xorshift64*: enough to choose by.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, bound: usize) -> usize {
        self.next() as usize % bound.max(1)
    }
}

/// Changes some bytes: sets, inserts, removes, repeats a stretch, or splices another input.
fn mutate(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        let end = (at + random.below(16)).min(input.len());
        match random.below(6) {
            0 if at < input.len() => input[at] = random.next() as u8,
            1 => input.insert(at, b"\"\\[]{}:,.-0/*&!|()\n$%\x00\xff"[random.below(23)]),
            2 => drop(input.drain(at..end)),
            3 => {
                let stretch = input[at..end].to_vec();
                (0..random.below(20)).for_each(|_| input.extend_from_slice(&stretch));
            }
            4 => {
                let from = random.below(other.len() + 1);
                let piece = &other[from..(from + random.below(32)).min(other.len())];
                input.splice(at..at, piece.iter().copied());
            }
            _ => (0..random.below(24)).for_each(|_| input.push(random.next() as u8)),
        }
    }
    input.truncate(BYTES_MAX);
}

/// Inputs that broke a law once.
fn found_before(target: &Target) -> Vec<Vec<u8>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let mut files: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    files.into_iter().map(|f| std::fs::read(f).expect("a readable input")).collect()
}

fn draw(target: &Target) {
    let mut inputs = found_before(target);
    inputs.extend(target.seeds.iter().map(|s| s.to_vec()));
    inputs.iter().for_each(|input| (target.run)(input));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let started = Instant::now();
    let longer = std::env::var("FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).map(Duration::from_secs);
    for tried in 0.. {
        if started.elapsed() > longer.unwrap_or(TIME_MAX) || (longer.is_none() && tried >= MUTATIONS_MAX) {
            break;
        }
        let mut input = inputs[random.below(inputs.len())].clone();
        let other = inputs[random.below(inputs.len())].clone();
        mutate(&mut random, &mut input, &other);
        // The input is told where the panic is told of.
        let shown = Shown(target.name, &input);
        (target.run)(&input);
        std::mem::forget(shown);
    }
}

struct Shown<'a>(&'static str, &'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        eprintln!("{} fails on b\"{}\"", self.0, self.1.escape_ascii());
    }
}

macro_rules! draws {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            draw(coxswain_fuzz::target(stringify!($name)).expect("a target of this name"));
        })*

        #[test]
        fn every_target_is_drawn() {
            let names: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

draws! {
    cel cbor_decode every_encoding field_paths json_decode json_patch json_patch_text merge_patch object_rules
    protobuf_decode quantity request_texts selectors server_side_apply spdy_frames storage_records
    strategic_merge_patch structural_schema times websocket_channels yaml_decode
}
