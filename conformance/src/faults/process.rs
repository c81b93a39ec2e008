//! Processes that a fault run starts, stops, halts and kills: API servers and their stores.

use anyhow::{Context, Result, bail, ensure};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// A program with its arguments, that runs or does not.
pub struct Process {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    pub fn new(program: impl Into<PathBuf>, arguments: Vec<String>, log: PathBuf) -> Process {
        Process { program: program.into(), arguments, environment: Vec::new(), log, child: None }
    }

    /// As another user, which Postgres insists on. The environment so far begins with the program: a shifted clock that the
    /// change of users saw already would leave its memory to root.
    pub fn run_by(mut self, user: &str) -> Process {
        let mut arguments = vec![format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()];
        arguments.push("env".to_owned());
        arguments.extend(self.environment.drain(..).map(|(name, value)| format!("{name}={value}")));
        arguments.push(self.program.display().to_string());
        arguments.append(&mut self.arguments);
        (self.program, self.arguments) = ("setpriv".into(), arguments);
        self
    }

    pub fn with_clock(mut self, clock: Option<&Clock>) -> Process {
        self.environment.extend(clock.into_iter().flat_map(Clock::environment));
        self
    }

    pub fn start(&mut self) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        self.child = Some(command.spawn().with_context(|| format!("starting {}", self.program.display()))?);
        Ok(())
    }

    /// Runs it to its end, which must be a good one.
    pub async fn run(&mut self) -> Result<()> {
        self.start()?;
        if let Some(child) = &mut self.child {
            let status = child.wait().await?;
            ensure!(status.success(), "{} ended with {status}", self.program.display());
        }
        Ok(())
    }

    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|c| matches!(c.try_wait(), Ok(None)))
    }

    pub fn signal(&mut self, signal: &str) -> Result<()> {
        match self.id().filter(|_| self.runs()) {
            Some(id) => send_signal(id, signal),
            None => Ok(()),
        }
    }

    /// Signals, and waits for the end.
    pub async fn end(&mut self, signal: &str) -> Result<()> {
        self.signal(signal)?;
        if let Some(child) = &mut self.child {
            let ended = tokio::time::timeout(Duration::from_secs(30), child.wait()).await;
            if ended.is_err() {
                child.kill().await?;
                bail!("{} did not end within 30 s of {signal}", self.program.display());
            }
        }
        Ok(())
    }

    pub fn log_tail(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(3_000)..]).into_owned()
    }
}

pub fn send_signal(process: u32, signal: &str) -> Result<()> {
    let sent = std::process::Command::new("kill").args([&format!("-{signal}"), &process.to_string()]).status()?;
    // It may have ended by itself meanwhile, which is no error here.
    ensure!(sent.code().is_some(), "kill was killed");
    Ok(())
}

/// The children of a process, as Postgres has one for each connection.
pub fn children_of(process: u32) -> Vec<u32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|id| id.parse().ok()).collect()
}

/// A wall clock that can be set for single processes, by Debian's libfaketime. The monotonic clock stays true.
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// None where the library is not installed.
    pub fn in_directory(directory: &Path, name: &str) -> Result<Option<Clock>> {
        let found = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().find_map(|entry| {
            let library = entry.path().join("faketime/libfaketimeMT.so.1");
            library.exists().then_some(library)
        });
        let Some(library) = found else { return Ok(None) };
        let clock = Clock { library, file: directory.join(format!("{name}.clock")) };
        clock.set(0)?;
        Ok(Some(clock))
    }

    /// Seconds ahead of the true time.
    pub fn set(&self, seconds: i64) -> Result<()> {
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}\n"))?;
        std::fs::rename(new, &self.file).context("setting a clock")
    }

    fn environment(&self) -> Vec<(String, String)> {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
            ("FAKETIME_DISABLE_SHM", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }
}

/// A small disk in memory, which can be filled. It needs a mount namespace of one's own, and root.
pub struct SmallDisk {
    pub path: PathBuf,
}

impl SmallDisk {
    pub fn mount(path: PathBuf, mebibytes: u32) -> Result<SmallDisk> {
        std::fs::create_dir_all(&path)?;
        let options = format!("size={mebibytes}m,mode=755");
        let mut mount = std::process::Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path).status()?;
        ensure!(mounted.success(), "a small disk could not be mounted at {}", path.display());
        Ok(SmallDisk { path })
    }

    /// Leaves this much room.
    pub fn fill(&self, left: u64) -> Result<()> {
        let output = std::process::Command::new("df").args(["--output=avail", "-B1"]).arg(&self.path).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let free: u64 = text.lines().last().and_then(|l| l.trim().parse().ok()).context("df says nothing")?;
        if free > left {
            let length = (free - left).to_string();
            // Other writers may be quicker than this; what is full is full.
            let mut fallocate = std::process::Command::new("fallocate");
            let _ = fallocate.args(["-l", &length]).arg(self.ballast()).stderr(Stdio::null()).status()?;
        }
        Ok(())
    }

    pub fn empty(&self) -> Result<()> {
        match std::fs::remove_file(self.ballast()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// Waits until `condition` holds; false if it takes too long.
pub async fn wait_until(limit: Duration, mut condition: impl AsyncFnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !condition().await {
        if Instant::now() > end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    true
}
