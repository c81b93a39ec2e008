//! Control groups of pods and of the three classes of service (upstream: `kubelet/cm`), on both versions of the kernel's interface.
//!
//! The kubelet makes `kubepods`, `kubepods/burstable`, `kubepods/besteffort` and one group a pod; the runtime makes the containers'
//! groups within. Under the systemd driver the same tree is made of nested slices.

use crate::pod::PodExt;
use crate::resources::{self, CgroupLimits, QosClass};
use k8s_openapi::api::core::v1::Pod;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Cgroupfs,
    Systemd,
}

/// Makes, limits and removes groups below one root. Owns nothing in memory: the kernel's tree is the state.
#[derive(Clone, Debug)]
pub struct Cgroups {
    mount: PathBuf,
    version: Version,
    driver: Driver,
    /// Names of the groups above `kubepods`, empty for the root.
    root: Vec<String>,
    enabled: bool,
}

/// Controllers of version 1 in which the kubelet keeps its groups. Others (cpuset, devices, freezer) are the runtime's affair.
const V1_CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];
const V2_CONTROLLERS: [&str; 5] = ["cpuset", "cpu", "io", "memory", "pids"];

impl Cgroups {
    pub fn detect(driver: Driver, root: &str, enabled: bool) -> Self {
        Self::at(PathBuf::from("/sys/fs/cgroup"), driver, root, enabled)
    }

    fn at(mount: PathBuf, driver: Driver, root: &str, enabled: bool) -> Self {
        let version = if mount.join("cgroup.controllers").exists() { Version::V2 } else { Version::V1 };
        let root = root.split('/').filter(|part| !part.is_empty()).map(str::to_string).collect();
        Cgroups { mount, version, driver, root, enabled }
    }

    pub fn version(&self) -> Version {
        self.version
    }

    pub fn enabled(&self) -> bool {
        self.enabled
    }

    fn names(&self, below: &[&str]) -> Vec<String> {
        self.root.iter().cloned().chain(below.iter().map(|s| s.to_string())).collect()
    }

    fn pod_names(&self, pod: &Pod) -> Vec<String> {
        let group = format!("pod{}", pod.uid());
        match resources::qos_class(pod) {
            QosClass::Guaranteed => self.names(&["kubepods", &group]),
            QosClass::Burstable => self.names(&["kubepods", "burstable", &group]),
            QosClass::BestEffort => self.names(&["kubepods", "besteffort", &group]),
        }
    }

    /// The path of a group below a controller's mount. systemd's slices repeat their parents' names and cannot hold dashes otherwise.
    fn relative(&self, names: &[String]) -> PathBuf {
        match self.driver {
            Driver::Cgroupfs => names.iter().collect(),
            Driver::Systemd => {
                let mut path = PathBuf::new();
                let mut joined = String::new();
                for name in names {
                    if !joined.is_empty() {
                        joined.push('-');
                    }
                    joined.push_str(&name.replace('-', "_"));
                    path.push(format!("{joined}.slice"));
                }
                path
            }
        }
    }

    /// What the runtime is told as a pod's `cgroup_parent`: a path, or under systemd the name of a slice.
    pub fn parent_of(&self, pod: &Pod) -> String {
        if !self.enabled {
            return String::new();
        }
        let relative = self.relative(&self.pod_names(pod));
        match self.driver {
            Driver::Cgroupfs => format!("/{}", relative.display()),
            Driver::Systemd => relative.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
        }
    }

    /// Makes the groups above the pods. `memory_bytes` and `milli_cpu` are what pods may use of the node.
    pub fn prepare(&self, milli_cpu: i64, memory_bytes: Option<i64>) -> io::Result<()> {
        if !self.enabled {
            return Ok(());
        }
        let all = CgroupLimits {
            cpu_shares: Some(resources::milli_cpu_to_shares(milli_cpu)),
            memory_bytes,
            ..Default::default()
        };
        self.ensure(&self.names(&["kubepods"]), &all)?;
        let least = CgroupLimits { cpu_shares: Some(resources::CPU_SHARES_MIN), ..Default::default() };
        self.ensure(&self.names(&["kubepods", "besteffort"]), &least)?;
        self.ensure(&self.names(&["kubepods", "burstable"]), &least)
    }

    /// Burstable pods together weigh as much as their requests add up to, so that they do not starve beside guaranteed ones.
    pub fn set_burstable_cpu(&self, milli_cpu: i64) -> io::Result<()> {
        if !self.enabled {
            return Ok(());
        }
        let limits = CgroupLimits { cpu_shares: Some(resources::milli_cpu_to_shares(milli_cpu)), ..Default::default() };
        self.ensure(&self.names(&["kubepods", "burstable"]), &limits)
    }

    pub fn ensure_pod(&self, pod: &Pod, limits: &CgroupLimits) -> io::Result<()> {
        if !self.enabled {
            return Ok(());
        }
        self.ensure(&self.pod_names(pod), limits)
    }

    fn ensure(&self, names: &[String], limits: &CgroupLimits) -> io::Result<()> {
        let relative = self.relative(names);
        let context = |path: &Path, e: io::Error| io::Error::new(e.kind(), format!("cgroup {}: {e}", path.display()));
        match self.version {
            Version::V1 => {
                for controller in V1_CONTROLLERS {
                    let mount = self.mount.join(controller);
                    if !mount.exists() {
                        continue;
                    }
                    let path = mount.join(&relative);
                    fs::create_dir_all(&path).map_err(|e| context(&path, e))?;
                    match controller {
                        "cpu" => {
                            if let Some(shares) = limits.cpu_shares {
                                write(&path.join("cpu.shares"), shares)?;
                            }
                            if let Some(quota) = limits.cpu_quota_us {
                                write(&path.join("cpu.cfs_period_us"), limits.cpu_period_us)?;
                                write(&path.join("cpu.cfs_quota_us"), if quota > 0 { quota } else { -1 })?;
                            }
                        }
                        "memory" => {
                            if let Some(bytes) = limits.memory_bytes {
                                write(&path.join("memory.limit_in_bytes"), bytes)?;
                            }
                        }
                        "pids" => {
                            if let Some(pids) = limits.pids {
                                write(&path.join("pids.max"), pids)?;
                            }
                        }
                        _ => {}
                    }
                }
            }
            Version::V2 => {
                let mut path = self.mount.clone();
                for part in relative.components() {
                    enable_controllers(&path)?;
                    path.push(part);
                    if let Err(e) = fs::create_dir(&path)
                        && e.kind() != io::ErrorKind::AlreadyExists
                    {
                        return Err(context(&path, e));
                    }
                }
                enable_controllers(&path)?;
                if let Some(shares) = limits.cpu_shares {
                    write(&path.join("cpu.weight"), resources::shares_to_weight(shares))?;
                }
                if let Some(quota) = limits.cpu_quota_us {
                    let quota = if quota > 0 { quota.to_string() } else { "max".into() };
                    write(&path.join("cpu.max"), format!("{quota} {}", limits.cpu_period_us))?;
                }
                if let Some(bytes) = limits.memory_bytes {
                    write(&path.join("memory.max"), bytes)?;
                }
                if let Some(pids) = limits.pids {
                    write(&path.join("pids.max"), pids)?;
                }
            }
        }
        Ok(())
    }

    fn trees(&self) -> Vec<PathBuf> {
        match self.version {
            Version::V2 => vec![self.mount.clone()],
            // The runtime makes groups of the same name in every controller; all of them have to go.
            Version::V1 => fs::read_dir(&self.mount)
                .map(|d| d.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect())
                .unwrap_or_default(),
        }
    }

    /// Removes a pod's groups, its containers' included, and ends processes that outlived their container. A group that is still busy
    /// is left for the next try.
    pub fn remove_pod(&self, pod: &Pod) -> io::Result<()> {
        if !self.enabled {
            return Ok(());
        }
        self.remove_path(&self.relative(&self.pod_names(pod)))
    }

    /// Uids of the pods that have groups, and the directories, for cleaning up after pods nobody knows any more.
    pub fn pods_on_disk(&self) -> Vec<(String, PathBuf)> {
        if !self.enabled {
            return Vec::new();
        }
        let mut found = std::collections::BTreeMap::new();
        let controller = if self.version == Version::V2 { self.mount.clone() } else { self.mount.join("memory") };
        for class in [&["kubepods"][..], &["kubepods", "burstable"], &["kubepods", "besteffort"]] {
            let relative = self.relative(&self.names(class));
            for entry in fs::read_dir(controller.join(&relative)).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let name = name.strip_suffix(".slice").and_then(|n| n.rsplit('-').next()).unwrap_or(&name);
                if let Some(uid) = name.strip_prefix("pod").filter(|uid| uid.len() >= 32) {
                    found.insert(uid.replace('_', "-"), relative.join(entry.file_name()));
                }
            }
        }
        found.into_iter().collect()
    }

    pub fn remove_path(&self, relative: &Path) -> io::Result<()> {
        self.trees().iter().try_for_each(|tree| {
            let path = tree.join(relative);
            kill_processes(&path);
            remove_tree(&path)
        })
    }

    /// Cumulative CPU nanoseconds and the memory working set, usage and resident set of a pod, of all pods, or of the node.
    pub fn usage(&self, relative: &Path) -> Option<Usage> {
        let read = |path: PathBuf| fs::read_to_string(path).ok();
        let number = |path: PathBuf| read(path).and_then(|t| t.trim().parse::<u64>().ok());
        let field = |text: &str, name: &str| {
            text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok())
        };
        match self.version {
            Version::V1 => {
                let memory = self.mount.join("memory").join(relative);
                let stat = read(memory.join("memory.stat"))?;
                let usage = number(memory.join("memory.usage_in_bytes"))?;
                let inactive = field(&stat, "total_inactive_file").unwrap_or(0);
                Some(Usage {
                    cpu_nanos: number(self.mount.join("cpuacct").join(relative).join("cpuacct.usage")).unwrap_or(0),
                    memory_bytes: usage,
                    working_set_bytes: usage.saturating_sub(inactive),
                    rss_bytes: field(&stat, "total_rss").unwrap_or(0),
                    page_faults: field(&stat, "total_pgfault").unwrap_or(0),
                    major_page_faults: field(&stat, "total_pgmajfault").unwrap_or(0),
                })
            }
            Version::V2 => {
                let path = self.mount.join(relative);
                let cpu = read(path.join("cpu.stat"))?;
                let stat = read(path.join("memory.stat")).unwrap_or_default();
                let usage = number(path.join("memory.current"))
                    .unwrap_or_else(|| field(&stat, "anon").unwrap_or(0) + field(&stat, "file").unwrap_or(0));
                Some(Usage {
                    cpu_nanos: field(&cpu, "usage_usec").unwrap_or(0) * 1000,
                    memory_bytes: usage,
                    working_set_bytes: usage.saturating_sub(field(&stat, "inactive_file").unwrap_or(0)),
                    rss_bytes: field(&stat, "anon").unwrap_or(0),
                    page_faults: field(&stat, "pgfault").unwrap_or(0),
                    major_page_faults: field(&stat, "pgmajfault").unwrap_or(0),
                })
            }
        }
    }

    pub fn pod_usage(&self, pod: &Pod) -> Option<Usage> {
        self.enabled.then(|| self.usage(&self.relative(&self.pod_names(pod)))).flatten()
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu_nanos: u64,
    pub memory_bytes: u64,
    pub working_set_bytes: u64,
    pub rss_bytes: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
}

fn write(path: &Path, value: impl std::fmt::Display) -> io::Result<()> {
    fs::write(path, value.to_string()).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

/// Children can only be limited by controllers that their parent delegates. One that is not available is no error: its limit is not.
fn enable_controllers(path: &Path) -> io::Result<()> {
    let available = fs::read_to_string(path.join("cgroup.controllers"))?;
    let enabled = fs::read_to_string(path.join("cgroup.subtree_control"))?;
    for controller in V2_CONTROLLERS {
        let has = |list: &str| list.split_whitespace().any(|c| c == controller);
        if has(&available) && !has(&enabled) {
            fs::write(path.join("cgroup.subtree_control"), format!("+{controller}"))?;
        }
    }
    Ok(())
}

fn kill_processes(path: &Path) {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 1) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    for child in fs::read_dir(path).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|t| t.is_dir()) {
            kill_processes(&child.path());
        }
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let children = match fs::read_dir(path) {
        Ok(children) => children,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for child in children.flatten() {
        if child.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&child.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_named_as_each_driver_wants() {
        let pod: Pod = serde_json::from_value(
            serde_json::json!({"metadata": {"uid": "a-b"}, "status": {"qosClass": "Burstable"}}),
        )
        .unwrap();
        let cgroups = |driver| Cgroups::at("/nonexistent".into(), driver, "/top", true);
        assert_eq!(cgroups(Driver::Cgroupfs).parent_of(&pod), "/top/kubepods/burstable/poda-b");
        assert_eq!(cgroups(Driver::Systemd).parent_of(&pod), "top-kubepods-burstable-poda_b.slice");
    }
}
