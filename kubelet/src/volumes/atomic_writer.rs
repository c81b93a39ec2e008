//! Replaces a directory's content in one step (upstream: `pkg/volume/util/atomic_writer.go`).
//!
//! Files live in a directory of their own, named by the time; `..data` is a symbolic link to it, and every visible name is a link through
//! `..data`. A new version is one rename of `..data`, so a reader never sees half of it.

use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// The owner, where it is not the kubelet's.
    pub uid: Option<u32>,
}

/// Relative paths to files.
pub type Payload = BTreeMap<String, File>;

/// Writes the payload unless it is what is there already. `prepare` is called with the new directory before it becomes visible.
pub fn write(target: &Path, payload: &Payload, prepare: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    for path in payload.keys() {
        let bad = path.is_empty() || path.starts_with('/') || path.split('/').any(|part| part == "..");
        if bad || path.starts_with("..") {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path in payload: {path}")));
        }
    }
    let old = fs::read_link(target.join(DATA)).ok();
    if let Some(old) = &old
        && same(&target.join(old), payload)?
    {
        // A crash may have come between the rename and the links.
        return link_names(target, payload);
    }
    let now = Timestamp::now();
    let name = format!("..{}.{:010}", now.strftime("%Y_%m_%d_%H_%M_%S"), now.subsec_nanosecond());
    let fresh = target.join(&name);
    fs::create_dir(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let path = fresh.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, &file.data)?;
        // Not by the mode at creation, which the umask would cut.
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
        if let Some(uid) = file.uid {
            std::os::unix::fs::chown(&path, Some(uid), None)?;
        }
    }
    prepare(&fresh)?;
    let link = target.join(DATA_NEW);
    let _ = fs::remove_file(&link);
    symlink(&name, &link)?;
    fs::rename(&link, target.join(DATA))?;
    link_names(target, payload)?;
    remove_stale_names(target, payload)?;
    if let Some(old) = old {
        fs::remove_dir_all(target.join(old))?;
    }
    Ok(())
}

fn files_in(dir: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else {
                found.insert(entry.path());
            }
        }
    }
    Ok(found)
}

fn same(dir: &Path, payload: &Payload) -> io::Result<bool> {
    let Ok(present) = files_in(dir) else { return Ok(false) };
    if present.len() != payload.len() {
        return Ok(false);
    }
    for (path, file) in payload {
        let path = dir.join(path);
        if !present.contains(&path) || fs::read(&path)? != file.data {
            return Ok(false);
        }
    }
    Ok(true)
}

fn first_part(path: &str) -> &str {
    path.split('/').next().unwrap_or(path)
}

fn link_names(target: &Path, payload: &Payload) -> io::Result<()> {
    for name in payload.keys().map(|path| first_part(path)).collect::<BTreeSet<_>>() {
        match symlink(Path::new(DATA).join(name), target.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn remove_stale_names(target: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().map(|path| first_part(path)).collect();
    for entry in fs::read_dir(target)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, text)| (path.to_string(), File { data: text.as_bytes().to_vec(), mode: 0o640, uid: None }))
            .collect()
    }

    #[test]
    fn content_is_replaced_as_a_whole_and_left_alone_when_equal() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path();
        let put = |files: &[(&str, &str)]| write(target, &payload(files), |_| Ok(())).unwrap();
        put(&[("a", "1"), ("sub/b", "2")]);
        let first = fs::read_link(target.join(DATA)).unwrap();
        assert_eq!(fs::read_to_string(target.join("sub/b")).unwrap(), "2");
        assert_eq!(fs::metadata(target.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        put(&[("a", "1"), ("sub/b", "2")]);
        assert_eq!(fs::read_link(target.join(DATA)).unwrap(), first);
        put(&[("a", "3")]);
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "3");
        assert!(!target.join("sub").exists() && !target.join(first).exists());
    }

    #[test]
    fn paths_cannot_leave_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "a/../../x", "..x"] {
            assert!(write(dir.path(), &payload(&[(path, "")]), |_| Ok(())).is_err(), "{path}");
        }
    }
}
