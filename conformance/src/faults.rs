//! What must survive everything: servers and stores are killed, halted, cut off, run out of disk and have their clocks
//! moved, at random moments and under load, and then everything that clients and watches saw is checked.
//!
//! Three runs: [`control_plane`] kills a whole cluster whose pods go on running; [`storage`] takes API servers and their
//! store; [`rolling`] restarts servers gently. Random choices come from one seed, which is printed.

mod checks;
mod clients;
mod control_plane;
mod history;
mod http;
mod linear;
mod load;
mod process;
mod rolling;
mod storage;
mod stores;
mod wire;

use anyhow::Result;
use std::path::PathBuf;
use stores::Backend;

#[derive(clap::Args)]
pub struct Options {
    /// The binary to try
    #[arg(long, value_name = "PATH")]
    coxswain: PathBuf,
    /// Try API servers on this store, rather than a whole control plane; repeat it to try several
    #[arg(long, value_enum)]
    backend: Vec<Backend>,
    /// An archive of images; with it, real pods run through all of it (whole control plane only)
    #[arg(long, value_name = "FILE", conflicts_with = "backend")]
    images: Option<PathBuf>,
    /// How many faults: kills of the control plane, or any fault of a store's servers
    #[arg(long, default_value_t = 50)]
    rounds: u32,
    /// Restart several API servers in turn, as an upgrade does it, rather than inflict faults
    #[arg(long, requires = "backend")]
    rolling: bool,
    /// Repeats a run
    #[arg(long)]
    seed: Option<u64>,
}

pub async fn run(options: Options) -> Result<()> {
    let seed = options.seed.unwrap_or_else(rand::random);
    if options.backend.is_empty() {
        return control_plane::run(&options, seed).await;
    }
    for backend in &options.backend {
        match options.rolling {
            true => rolling::run(*backend, &options, seed).await?,
            false => storage::run(*backend, &options, seed).await?,
        }
    }
    Ok(())
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
