//! Copies of memory on AMD processors, which the C library does by an instruction that is slow there.
//!
//! From 2 KB on glibc copies with `rep movsb` where the processor says that it is fast. On AMD's it is so for some alignments of source
//! and target only (glibc bug 30994; mended in 2.40), and a TLS record, whose payload begins five bytes into a buffer, has one of the
//! others: a third of the time of a long list went there. The threshold is read from the environment, once, before `main`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const TUNABLES: &str = "GLIBC_TUNABLES";
/// Larger than any copy, so that the C library's vector loops do them all.
const THRESHOLD: &str = "glibc.cpu.x86_rep_movsb_threshold=0x40000000";

/// Starts this program once more in its own place, if its copies would be slow otherwise. What the operator has set is left alone.
pub fn make_fast(args: &[OsString]) {
    if std::env::var_os(TUNABLES).is_some() || !concerns(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
    {
        return;
    }
    let (Some(program), Some(name)) = (program(args), args.first()) else { return };
    // It only returns if it failed, and then everything works, just slower.
    let _ = Command::new(program).arg0(name).args(&args[1..]).env(TUNABLES, THRESHOLD).exec();
}

fn concerns(cpuinfo: &str) -> bool {
    let field =
        |name: &str| cpuinfo.lines().find(|l| l.starts_with(name)).and_then(|l| l.split_once(':')).map(|(_, v)| v);
    let flags = field("flags").unwrap_or_default();
    field("vendor_id").is_some_and(|v| v.trim() == "AuthenticAMD")
        && flags.split(' ').any(|f| f == "fsrm" || f == "erms")
}

/// The path that the program was called by, which becomes the name of the process, or else the file that it is.
fn program(args: &[OsString]) -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let called = Path::new(args.first()?);
    let same = called.components().count() > 1 && called.canonicalize().is_ok_and(|c| c == own);
    Some(if same { called.to_owned() } else { own })
}

#[cfg(test)]
mod tests {
    use super::concerns;

    #[test]
    fn only_amd_processors_with_the_instruction_are_concerned() {
        let of = |vendor: &str, flags: &str| {
            concerns(&format!("processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n"))
        };
        assert!(of("AuthenticAMD", "fpu erms fsrm vaes"));
        assert!(!of("AuthenticAMD", "fpu"));
        assert!(!of("GenuineIntel", "fpu erms fsrm"));
        assert!(!concerns(""));
    }
}
