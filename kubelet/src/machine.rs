//! What this machine is and has (upstream: cAdvisor's machine information).

use std::fs;
use std::path::Path;

#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub cpus: i64,
    pub memory_bytes: i64,
    pub swap_bytes: i64,
    /// Page size in kilobytes and number of pages.
    pub hugepages: Vec<(i64, i64)>,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel: String,
    pub os_image: String,
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map(|t| t.trim_matches(['\0', ' ', '\n']).to_string()).unwrap_or_default()
}

/// A number of kilobytes from `/proc/meminfo`, in bytes.
pub fn meminfo(field: &str) -> i64 {
    let text = read("/proc/meminfo");
    let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<i64>().ok()).unwrap_or(0) * 1024
}

/// Where machines of different kinds say who they are; the first that says anything counts.
const SYSTEM_UUIDS: [&str; 4] =
    ["/sys/class/dmi/id/product_uuid", "/proc/device-tree/system-id", "/proc/device-tree/vm,uuid", "/etc/machine-id"];

impl Machine {
    pub fn detect() -> Self {
        let os_release = read("/etc/os-release");
        let os_image =
            os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).map(|v| v.trim_matches('"').to_string());
        let machine_id = match read("/etc/machine-id") {
            id if id.is_empty() => read("/var/lib/dbus/machine-id"),
            id => id,
        };
        let mut hugepages: Vec<(i64, i64)> = fs::read_dir("/sys/kernel/mm/hugepages")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let size = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
                let count = read(&entry.path().join("nr_hugepages").display().to_string()).parse().ok()?;
                Some((size, count))
            })
            .collect();
        hugepages.sort_unstable();
        Machine {
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as i64),
            memory_bytes: meminfo("MemTotal"),
            swap_bytes: meminfo("SwapTotal"),
            hugepages,
            machine_id,
            system_uuid: SYSTEM_UUIDS.iter().map(|path| read(path)).find(|id| !id.is_empty()).unwrap_or_default(),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            kernel: read("/proc/sys/kernel/osrelease"),
            os_image: os_image.unwrap_or_else(|| "Linux".into()),
        }
    }
}

/// Size and use of the file system that holds a path.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileSystem {
    pub capacity_bytes: u64,
    pub available_bytes: u64,
    pub used_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

pub fn file_system(path: &Path) -> Option<FileSystem> {
    let s = nix::sys::statvfs::statvfs(path).ok()?;
    let size = s.fragment_size() as u64;
    Some(FileSystem {
        capacity_bytes: s.blocks() as u64 * size,
        available_bytes: s.blocks_available() as u64 * size,
        used_bytes: (s.blocks() as u64).saturating_sub(s.blocks_free() as u64) * size,
        inodes: s.files() as u64,
        inodes_free: s.files_free() as u64,
    })
}

/// The address by which this machine reaches others: that of the default route's interface, or else the first that is not loopback.
pub fn primary_address() -> Option<std::net::IpAddr> {
    // Connecting a datagram socket sends nothing; it only makes the kernel choose a route and a source address.
    let route = |bind: &str, to: &str| {
        let socket = std::net::UdpSocket::bind(bind).ok()?;
        socket.connect(to).ok()?;
        socket.local_addr().ok().map(|a| a.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
    };
    let by_route = route("0.0.0.0:0", "192.0.2.1:9").or_else(|| route("[::]:0", "[2001:db8::1]:9"));
    by_route.or_else(|| {
        let addresses: Vec<std::net::IpAddr> = nix::ifaddrs::getifaddrs()
            .ok()?
            .filter_map(|interface| {
                let address = interface.address?;
                let v4 = address.as_sockaddr_in().map(|a| std::net::IpAddr::V4(a.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|a| std::net::IpAddr::V6(a.ip())))
            })
            .filter(|ip| !ip.is_loopback() && !matches!(ip, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local()))
            .collect();
        addresses.iter().find(|ip| ip.is_ipv4()).or(addresses.first()).copied()
    })
}

/// Whether the kernel confines processes by AppArmor.
pub fn has_app_armor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}
