//! libFuzzer around one target, which `FUZZ_TARGET` names. `dev/fuzz.sh` builds and runs it; with `FUZZ_SEEDS=DIR` it only
//! writes the target's seeds there, with `FUZZ_LIST=1` it only names the targets.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static TARGET: LazyLock<&'static coxswain_fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    coxswain_fuzz::target(&name).unwrap_or_else(|| panic!("FUZZ_TARGET names no target: {name:?}"))
});

fuzz_target!(
    init: {
        if std::env::var_os("FUZZ_LIST").is_some() {
            coxswain_fuzz::TARGETS.iter().for_each(|target| println!("{}", target.name));
            std::process::exit(0);
        }
        if let Ok(folder) = std::env::var("FUZZ_SEEDS") {
            for (i, seed) in TARGET.seeds.iter().enumerate() {
                std::fs::write(format!("{folder}/seed-{i}"), seed).expect("a folder for seeds that can be written");
            }
            std::process::exit(0);
        }
        // The reader of YAML panics on a few malformed documents, which its caller turns into refusals.
        let abort = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.location().is_none_or(|at| !at.file().contains("libyaml-safer")) {
                abort(info);
            }
        }));
    },
    |data: &[u8]| (TARGET.run)(data)
);
