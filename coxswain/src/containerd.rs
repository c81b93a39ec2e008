//! The containerd that a cluster runs for itself: from the installed package, in directories of its own, so that no other
//! containerd on the machine is disturbed.
//!
//! It is started in a session of its own and survives the end of `coxswain`: pods go on running, and the next start finds it
//! by its socket.

use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where Debian, Fedora and the CNI project put the plugins.
const CNI_DIRS: &[&str] = &["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"];
const PLUGINS: &[&str] = &["bridge", "host-local", "portmap", "loopback"];
const START_SECONDS_MAX: u64 = 30;

/// What this machine lacks for running containers, each with the reason it is needed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Missing(Vec<(&'static str, &'static str)>);

impl Missing {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "this machine cannot run containers yet:")?;
        for (what, why) in &self.0 {
            writeln!(f, "  - {what}: {why}")?;
        }
        let packages: Vec<_> = self.0.iter().map(|(what, _)| package(what)).filter(|p| !p.is_empty()).collect();
        let mut packages: Vec<_> = packages.into_iter().collect();
        packages.dedup();
        if !packages.is_empty() {
            writeln!(f, "On Debian and Ubuntu: apt-get install -y {}", packages.join(" "))?;
        }
        write!(f, "The control plane also runs without: coxswain up --hollow-nodes 1")
    }
}

fn package(what: &str) -> &'static str {
    match what {
        "containerd" => "containerd",
        "runc" => "runc",
        "CNI plugins" => "containernetworking-plugins",
        "nft" => "nftables",
        "ip" => "iproute2",
        _ => "",
    }
}

/// Looks for all that a node needs. Says everything that is missing at once.
pub fn missing(own_containerd: bool) -> Missing {
    let mut missing = Missing::default();
    if !nix::unistd::geteuid().is_root() {
        missing.0.push(("root", "mounts, network namespaces and cgroups need it; run with sudo"));
    }
    if own_containerd {
        for (binary, why) in [("containerd", "runs the containers"), ("runc", "starts each container")] {
            if find_binary(binary).is_none() {
                missing.0.push((binary, why));
            }
        }
        if cni_dir().is_none() {
            missing.0.push(("CNI plugins", "give pods their network (bridge, host-local, portmap, loopback)"));
        }
    }
    if find_binary("nft").is_none() {
        missing.0.push(("nft", "carries the traffic of Services"));
    }
    missing
}

/// An executable on the PATH or in the directories of the superuser, which a user's PATH often lacks.
pub fn find_binary(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    std::env::split_paths(&path).chain(extra.iter().map(PathBuf::from)).map(|d| d.join(name)).find(|p| p.is_file())
}

fn cni_dir() -> Option<&'static str> {
    CNI_DIRS.iter().copied().find(|dir| PLUGINS.iter().all(|p| Path::new(dir).join(p).is_file()))
}

/// Directories and socket of the cluster's own containerd.
#[derive(Clone, Debug)]
pub struct Containerd {
    /// Images and container file systems; on disk.
    root: PathBuf,
    /// Sockets and running state; gone after a reboot.
    pub run: PathBuf,
    pub cni_conf: PathBuf,
}

impl Containerd {
    pub fn new(data_dir: &Path) -> Self {
        Self { root: data_dir.join("containerd"), run: run_dir(data_dir), cni_conf: data_dir.join("cni/net.d") }
    }

    pub fn socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }

    /// Makes sure that it runs and answers. Returns whether it was started just now.
    pub async fn ensure(&self) -> Result<bool> {
        if self.answers() {
            return Ok(false);
        }
        let binary = find_binary("containerd").context("containerd is not installed")?;
        for dir in [&self.root, &self.run, &self.cni_conf] {
            fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        }
        let config = self.root.join("config.toml");
        fs::write(&config, self.config(&version(&binary)))?;
        let log_path = self.root.join("containerd.log");
        let log = fs::OpenOptions::new().create(true).append(true).open(&log_path)?;
        let mut command = Command::new(&binary);
        command.arg("--config").arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.process_group(0);
        let mut child = command.spawn().with_context(|| format!("starting {}", binary.display()))?;
        fs::write(self.root.join("containerd.pid"), child.id().to_string())?;
        let end = Instant::now() + Duration::from_secs(START_SECONDS_MAX);
        while !self.answers() {
            if let Some(status) = child.try_wait()? {
                bail!("containerd ended with {status}; its last words are in {}", log_path.display());
            }
            if Instant::now() > end {
                bail!("containerd did not answer within {START_SECONDS_MAX} s; see {}", log_path.display());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Reaps it when it ends while this process lives.
        std::thread::spawn(move || child.wait());
        Ok(true)
    }

    pub fn answers(&self) -> bool {
        std::os::unix::net::UnixStream::connect(self.socket()).is_ok()
    }

    /// The process that `ensure` started, if it still runs.
    pub fn pid(&self) -> Option<i32> {
        let pid: i32 = fs::read_to_string(self.root.join("containerd.pid")).ok()?.trim().parse().ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = self.root.join("config.toml");
        let mentions = command.windows(ours.as_os_str().len()).any(|w| w == ours.as_os_str().as_encoded_bytes());
        mentions.then_some(pid)
    }

    /// Imports an image archive (OCI layout or `docker save`) for pods to use.
    pub async fn import(&self, archive: &Path) -> Result<()> {
        let archive_text = archive.to_string_lossy();
        // Older versions have no --local.
        if self.ctr_images(&["import", "--local", &archive_text]).await.is_err() {
            self.ctr_images(&["import", &archive_text])
                .await
                .with_context(|| format!("importing {}", archive.display()))?;
        }
        self.name_by_digest().await
    }

    /// Gives every imported image the name `repository@digest` as well, as pulling it would have done: a pod's status
    /// names its images by digest, and a pod may ask for one so.
    async fn name_by_digest(&self) -> Result<()> {
        let listed = self.ctr_images(&["list"]).await?;
        for (reference, name) in digest_names(&listed) {
            self.ctr_images(&["tag", "--force", &reference, &name]).await?;
        }
        Ok(())
    }

    async fn ctr_images(&self, args: &[&str]) -> Result<String> {
        let ctr = find_binary("ctr").context("ctr, which comes with containerd, is not installed")?;
        let output = tokio::process::Command::new(ctr)
            .args(["--address".as_ref(), self.socket().as_os_str()])
            .args(["--namespace", "k8s.io", "images"])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .await?;
        if !output.status.success() {
            bail!("ctr images {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn config(&self, version: &Version) -> String {
        let cni = cni_dir().unwrap_or(CNI_DIRS[0]);
        let run = self.run.display();
        let root = self.root.display();
        let certs = self.root.join("certs.d");
        let certs = certs.display();
        let conf = self.cni_conf.display();
        let apparmor = !Path::new("/sys/kernel/security/apparmor").exists();
        let restrict_oom = !has_sys_resource();
        let head = format!(
            "root = \"{root}/root\"\nstate = \"{run}/state\"\noom_score = 0\n\n[grpc]\n  address = \"{run}/containerd.sock\"\n\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"{root}/opt\"\n\n"
        );
        let common = format!(
            "  netns_mounts_under_state_dir = true\n  restrict_oom_score_adj = {restrict_oom}\n  \
             disable_apparmor = {apparmor}\n  disable_hugetlb_controller = true\n  \
             tolerate_missing_hugetlb_controller = true\n  enable_unprivileged_ports = true\n  \
             enable_unprivileged_icmp = true\n"
        );
        if version.major >= 2 {
            format!(
                "version = 3\n{head}[plugins.\"io.containerd.cri.v1.images\"]\n  snapshotter = \"overlayfs\"\n\
                 [plugins.\"io.containerd.cri.v1.images\".registry]\n  config_path = \"{certs}\"\n\n\
                 [plugins.\"io.containerd.cri.v1.runtime\"]\n{common}\
                 [plugins.\"io.containerd.cri.v1.runtime\".cni]\n  bin_dirs = [\"{cni}\"]\n  conf_dir = \"{conf}\"\n\
                 [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]\n  \
                 runtime_type = \"io.containerd.runc.v2\"\n\
                 [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.options]\n  SystemdCgroup = false\n"
            )
        } else {
            let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
            format!(
                "version = 2\n{head}[{cri}]\n  sandbox_image = \"{PAUSE_IMAGE}\"\n{common}\n\
                 [{cri}.registry]\n  config_path = \"{certs}\"\n\n\
                 [{cri}.cni]\n  bin_dir = \"{cni}\"\n  conf_dir = \"{conf}\"\n\n\
                 [{cri}.containerd]\n  snapshotter = \"overlayfs\"\n\n\
                 [{cri}.containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n\n\
                 [{cri}.containerd.runtimes.runc.options]\n  SystemdCgroup = false\n"
            )
        }
    }
}

/// The image of the container that holds a pod's namespaces.
pub const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10.2";

/// Sockets have short paths and vanish with a reboot, so they live under `/run`, named after the data directory.
pub fn run_dir(data_dir: &Path) -> PathBuf {
    let full = fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    // FNV-1a: the name must be the same in every release.
    let hash = full
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    PathBuf::from(format!("/run/coxswain/{hash:016x}"))
}

struct Version {
    major: u32,
}

fn version(binary: &Path) -> Version {
    // `containerd github.com/containerd/containerd v2.0.1 …`, or without the `v`.
    let text = Command::new(binary).arg("--version").output().map(|o| o.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let word = text.split_whitespace().nth(2).unwrap_or("1").trim_start_matches('v');
    Version { major: word.split('.').next().and_then(|m| m.parse().ok()).unwrap_or(1) }
}

fn has_sys_resource() -> bool {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    line.and_then(|v| u64::from_str_radix(v.trim(), 16).ok()).is_none_or(|caps| caps & CAP_SYS_RESOURCE != 0)
}

/// From what `ctr images list` prints: the tagged images that have no name by digest yet, and that name.
fn digest_names(listed: &str) -> Vec<(String, String)> {
    let rows: Vec<(&str, &str)> = listed
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut columns = line.split_whitespace();
            let (reference, _kind, digest) = (columns.next()?, columns.next()?, columns.next()?);
            digest.starts_with("sha256:").then_some((reference, digest))
        })
        .collect();
    let mut names = Vec::new();
    for (reference, digest) in &rows {
        let Some((repository, tag)) = reference.rsplit_once(':') else { continue };
        if tag.contains('/') || repository.contains('@') || reference.starts_with("sha256:") {
            continue;
        }
        let name = format!("{repository}@{digest}");
        if !rows.iter().any(|(reference, _)| *reference == name) && !names.iter().any(|(_, n)| *n == name) {
            names.push(((*reference).to_owned(), name));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_the_remedy() {
        let missing = Missing(vec![("containerd", "runs the containers"), ("nft", "carries the traffic of Services")]);
        let text = missing.to_string();
        assert!(text.contains("apt-get install -y containerd nftables"), "{text}");
        assert!(text.contains("--hollow-nodes"), "{text}");
    }

    #[test]
    fn the_socket_path_fits_whatever_the_data_directory() {
        let long = PathBuf::from("/x".repeat(200));
        assert!(Containerd::new(&long).socket().as_os_str().len() < 100);
    }

    #[test]
    fn imported_images_get_a_name_by_digest_once() {
        let listed = "REF TYPE DIGEST SIZE PLATFORMS LABELS\n\
            r.io/a:1 t sha256:aa 1 KiB linux/amd64 -\n\
            r.io/b:1 t sha256:bb 1 KiB linux/amd64 -\n\
            r.io/b@sha256:bb t sha256:bb 1 KiB linux/amd64 -\n\
            sha256:cc t sha256:dd 1 KiB linux/amd64 -\n";
        assert_eq!(digest_names(listed), [("r.io/a:1".to_owned(), "r.io/a@sha256:aa".to_owned())]);
    }
}
