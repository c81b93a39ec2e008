//! Gives a volume to the pod's `fsGroup` (upstream: `volume.SetVolumeOwnership`).

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown};
use std::path::Path;

/// Lets the group read (and, unless read-only, write) everything below `root`, and makes new files inherit it. With `only_if_changed`
/// a tree whose root already belongs to the group is left alone (`fsGroupChangePolicy: OnRootMismatch`).
pub fn give_to_group(root: &Path, group: i64, read_only: bool, only_if_changed: bool) -> io::Result<()> {
    let group = group as u32;
    if only_if_changed {
        let metadata = fs::metadata(root)?;
        let wanted = if read_only { 0o040 } else { 0o060 };
        let mode = metadata.permissions().mode();
        if metadata.gid() == group && mode & wanted == wanted && mode & 0o2000 != 0 {
            return Ok(());
        }
    }
    visit(root, group, read_only)
}

fn visit(path: &Path, group: u32, read_only: bool) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.file_type().is_symlink() {
        return lchown(path, None, Some(group));
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            visit(&entry?.path(), group, read_only)?;
        }
    }
    chown(path, None, Some(group))?;
    let mut mode = metadata.permissions().mode() | if read_only { 0o440 } else { 0o660 };
    if metadata.is_dir() {
        mode |= 0o2110;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))
}
