//! The server's process, where it runs on this machine: what it costs in CPU time and memory.

use std::fs;

/// Clock ticks a second in `/proc`, the same on every platform served.
const TICKS: f64 = 100.0;

/// The processes that make up a server: the API server and, where there is one, its database.
#[derive(Clone, Debug, Default)]
pub struct Processes(Vec<u32>);

impl Processes {
    /// Those named, or else the one that listens on the port; none if it is not of this machine.
    pub fn find(pids: &[u32], port: u16) -> Self {
        if !pids.is_empty() {
            return Self(pids.to_vec());
        }
        Self(listener(port).into_iter().collect())
    }

    pub fn is_known(&self) -> bool {
        !self.0.is_empty()
    }

    /// Seconds of CPU that all have used so far.
    pub fn cpu_seconds(&self) -> f64 {
        self.0.iter().map(|pid| cpu_seconds(&pid.to_string())).sum()
    }

    /// Resident bytes of all.
    pub fn resident_bytes(&self) -> u64 {
        self.0.iter().map(|pid| status_kilobytes(*pid, "VmRSS:") * 1024).sum()
    }
}

/// Seconds of CPU that this process has used so far.
pub fn own_cpu_seconds() -> f64 {
    cpu_seconds("self")
}

fn cpu_seconds(pid: &str) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name of the program stands in parentheses and may have spaces; user and system time are fields 14 and 15.
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum::<f64>() / TICKS
}

fn status_kilobytes(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(field));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Who listens on a TCP port in this network namespace.
fn listener(port: u16) -> Option<u32> {
    const LISTEN: &str = "0A";
    let wanted = format!(":{port:04X}");
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let text = fs::read_to_string(table).ok()?;
        text.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens = fields.get(1)?.ends_with(&wanted) && *fields.get(3)? == LISTEN;
            listens.then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))?
        })
    })?;
    let holds = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.into_iter().any(|f| fs::read_link(f.path()).is_ok_and(|to| to.as_os_str() == inode.as_str()))
    };
    let all = fs::read_dir("/proc").ok()?.flatten();
    all.into_iter().filter_map(|e| e.file_name().to_str()?.parse().ok()).find(holds)
}
