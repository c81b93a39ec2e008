//! The images that test pods run, made locally into one OCI archive, so that no test needs a registry.
//!
//! The archive holds the test application under two tags, the pause container and, where the machine has a static busybox,
//! a shell. It is what `ctr images import` and `coxswain up --image-archive` take.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// The test application; `:1` and `:2` answer `/version` with their tag.
pub const APP: &str = "coxswain.test/app";
/// A shell with the usual tools, under the name that upstream's own tests use.
pub const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1";
const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";
const NGINX: &str = "registry.k8s.io/e2e-test-images/nginx:1.27-0";
const PAUSE: &[&str] = &["registry.k8s.io/pause:3.10.2", "registry.k8s.io/pause:3.6"];

struct Image {
    names: Vec<String>,
    files: Vec<(String, Vec<u8>)>,
    /// Symbolic links: path and target.
    links: Vec<(String, String)>,
    config: Value,
}

/// Writes the archive. `app` is the statically linked test application.
pub fn build(out: &Path, app: &Path, busybox: Option<&Path>) -> Result<Vec<String>> {
    let app = std::fs::read(app).with_context(|| format!("reading {}", app.display()))?;
    let mut images = Vec::new();
    for version in ["1", "2"] {
        images.push(Image {
            names: vec![format!("{APP}:{version}")],
            files: vec![("app".into(), app.clone())],
            links: vec![],
            config: json!({"Entrypoint": ["/app"], "Cmd": ["serve"], "Env": [format!("APP_VERSION={version}"), "PATH=/"],
                           "ExposedPorts": {"8080/tcp": {}}}),
        });
    }
    images.push(Image {
        names: PAUSE.iter().map(|n| (*n).to_owned()).collect(),
        files: vec![("pause".into(), app.clone())],
        links: vec![],
        config: json!({"Entrypoint": ["/pause"], "User": "65535:65535"}),
    });
    images.push(Image {
        names: vec![AGNHOST.into()],
        files: vec![("agnhost".into(), app.clone())],
        links: vec![],
        config: json!({"Entrypoint": ["/agnhost"], "Cmd": ["pause"]}),
    });
    images.push(Image {
        names: vec![NGINX.into()],
        files: vec![("nginx".into(), app.clone())],
        links: vec![],
        config: json!({"Entrypoint": ["/nginx"], "Cmd": ["serve", "--port=80"]}),
    });
    if let Some(busybox) = busybox {
        let shell = std::fs::read(busybox).with_context(|| format!("reading {}", busybox.display()))?;
        let list = std::process::Command::new(busybox).arg("--list").output().context("running busybox --list")?;
        let applets = String::from_utf8_lossy(&list.stdout).into_owned();
        images.push(Image {
            names: vec![BUSYBOX.into()],
            files: vec![
                ("bin/busybox".into(), shell),
                // A static busybox cannot resolve names; the test application can.
                ("bin/app".into(), app),
                ("etc/passwd".into(), b"root:x:0:0:root:/root:/bin/sh\n".to_vec()),
                ("etc/group".into(), b"root:x:0:\n".to_vec()),
            ],
            links: applets
                .lines()
                .filter(|a| *a != "busybox")
                .map(|a| (format!("bin/{a}"), "/bin/busybox".to_owned()))
                .collect(),
            config: json!({"Cmd": ["sh"], "Env": ["PATH=/bin:/usr/bin:/sbin"]}),
        });
    }
    write(out, &images)?;
    Ok(images.into_iter().flat_map(|i| i.names).collect())
}

fn write(out: &Path, images: &[Image]) -> Result<()> {
    let file = File::create(out).with_context(|| format!("creating {}", out.display()))?;
    let mut archive = tar::Builder::new(file);
    let mut blobs: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut add = |bytes: Vec<u8>| -> (String, usize) {
        let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        let size = bytes.len();
        blobs.insert(digest.clone(), bytes);
        (format!("sha256:{digest}"), size)
    };
    let mut manifests = Vec::new();
    for image in images {
        let (layer, layer_size) = add(layer(image)?);
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": arch, "os": "linux", "config": image.config,
            "rootfs": {"type": "layers", "diff_ids": [layer]},
            "history": [{"created_by": "coxswain conformance images"}],
        });
        let (config, config_size) = add(serde_json::to_vec(&config)?);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size}],
        });
        let (digest, size) = add(serde_json::to_vec(&manifest)?);
        for name in &image.names {
            manifests.push(json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
                "platform": {"architecture": arch, "os": "linux"},
                "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name},
            }));
        }
    }
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    append(&mut archive, "index.json", &serde_json::to_vec(&index)?, 0o644)?;
    for (digest, bytes) in &blobs {
        append(&mut archive, &format!("blobs/sha256/{digest}"), bytes, 0o644)?;
    }
    archive.into_inner()?.sync_all()?;
    Ok(())
}

/// The one layer of an image. Times are zero, so that the same content always has the same digest.
fn layer(image: &Image) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for dir in ["tmp/", "etc/", "root/", "var/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if dir == "tmp/" { 0o1777 } else { 0o755 });
        header.set_size(0);
        tar.append_data(&mut header, dir, std::io::empty())?;
    }
    for (path, content) in &image.files {
        let mode = if path.starts_with("etc/") { 0o644 } else { 0o755 };
        append(&mut tar, path, content, mode)?;
    }
    for (path, target) in &image.links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        tar.append_link(&mut header, path, target)?;
    }
    Ok(tar.into_inner()?)
}

fn append<W: std::io::Write>(tar: &mut tar::Builder<W>, path: &str, content: &[u8], mode: u32) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content)?;
    Ok(())
}
