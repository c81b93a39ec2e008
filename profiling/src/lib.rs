//! What a running process tells of itself to those who look for its time: CPU profiles in pprof's format, and the level of its log,
//! which can be changed (upstream: `apiserver/pkg/server/routes`' `Profiling` and `DebugFlags`, and Go's `net/http/pprof`).
//!
//! A profile is of the whole process, whichever of its components is asked. While nobody asks, nothing runs: no timer, no thread,
//! no signal. Profiles that only a Go runtime has (goroutines, execution traces, contention) are unknown here, as is the heap.

mod cpu;
mod image;
mod pprof;
pub mod routes;
mod sampler;
pub mod verbosity;

pub use cpu::{Error, profile};
