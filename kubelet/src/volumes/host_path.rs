//! `hostPath`: a path of the node, checked or made as its type says.

use super::{Context, Mounted};
use k8s_openapi::api::core::v1::{HostPathVolumeSource, Volume};
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub(super) fn set_up(_: &Context<'_>, volume: &Volume) -> Result<Mounted, String> {
    let source = volume.host_path.as_ref().ok_or("not a hostPath")?;
    check(source)?;
    Ok(Mounted { path: PathBuf::from(&source.path), ..Default::default() })
}

pub(super) fn check(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    let found = fs::metadata(path).ok();
    let io = |e: std::io::Error| format!("hostPath {}: {e}", path.display());
    let is = |what: &str, holds: bool| {
        if holds { Ok(()) } else { Err(format!("hostPath type check failed: {} is not a {what}", path.display())) }
    };
    let kind = found.as_ref().map(|m| m.file_type());
    match source.type_.as_deref().unwrap_or_default() {
        "DirectoryOrCreate" => {
            if found.is_none() {
                fs::create_dir_all(path).map_err(io)?;
                return fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(io);
            }
            is("directory", kind.is_some_and(|k| k.is_dir()))
        }
        "FileOrCreate" => {
            if found.is_none() {
                fs::write(path, b"").map_err(io)?;
                return fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(io);
            }
            is("file", kind.is_some_and(|k| k.is_file()))
        }
        "Directory" => is("directory", kind.is_some_and(|k| k.is_dir())),
        "File" => is("file", kind.is_some_and(|k| k.is_file())),
        "Socket" => is("socket file", kind.is_some_and(|k| k.is_socket())),
        "CharDevice" => is("character device", kind.is_some_and(|k| k.is_char_device())),
        "BlockDevice" => is("block device", kind.is_some_and(|k| k.is_block_device())),
        _ => Ok(()),
    }
}
