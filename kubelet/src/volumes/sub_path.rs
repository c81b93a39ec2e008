//! Parts of volumes (upstream: `pkg/volume/util/subpath`).
//!
//! A container could replace a directory on the way by a symbolic link while we look. So the kernel resolves the path within the volume,
//! and what is mounted is the very file that was opened, not its name.

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, mkdirat};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

fn open_in(volume: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(volume, path, how)
}

/// Binds `volume/sub_path` to `target` and returns it. A missing directory is made, as upstream does.
pub fn bind(volume: &Path, sub_path: &str, target: &Path) -> Result<PathBuf, String> {
    let relative = Path::new(sub_path);
    if relative.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("subPath {sub_path:?} not within volume path {:?}", volume.display().to_string()));
    }
    if super::is_mounted(target) {
        return Ok(target.to_path_buf());
    }
    let failed = |e: nix::Error| format!("failed to prepare subPath {sub_path:?}: {e}");
    let root = open(volume, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed)?;
    let found = match open_in(&root, relative) {
        Ok(found) => found,
        Err(nix::Error::ENOENT) => {
            let mut made = PathBuf::new();
            for part in relative.components() {
                let parent =
                    if made.as_os_str().is_empty() { None } else { Some(open_in(&root, &made).map_err(failed)?) };
                let at = parent.as_ref().map_or(root.as_fd(), |fd| fd.as_fd());
                match mkdirat(at, part.as_os_str(), Mode::from_bits_truncate(0o750)) {
                    Ok(()) | Err(nix::Error::EEXIST) => {}
                    Err(e) => return Err(failed(e)),
                }
                made.push(part);
            }
            open_in(&root, relative).map_err(failed)?
        }
        Err(e) => return Err(failed(e)),
    };
    let source = format!("/proc/self/fd/{}", found.as_raw_fd());
    let io = |e: std::io::Error| format!("{}: {e}", target.display());
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(io)?;
    }
    if fs::metadata(&source).map_err(io)?.is_dir() {
        fs::create_dir_all(target).map_err(io)?;
    } else {
        fs::write(target, b"").map_err(io)?;
    }
    mount(Some(source.as_str()), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(failed)?;
    Ok(target.to_path_buf())
}
