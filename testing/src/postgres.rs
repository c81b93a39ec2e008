//! A Postgres of a test's own.

use nix::sys::signal::{Signal, kill};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Listens on a socket in a temporary directory.
pub struct Postgres {
    directory: TempDir,
    settings: Vec<String>,
    process: Child,
}

impl Postgres {
    /// Returns at once when its database was made: it is for the caller to try until it answers.
    pub fn start() -> Self {
        Self::start_with(&[], |_| {})
    }

    /// With more settings, after the data directory was prepared.
    pub fn start_with(settings: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        own(directory.path());
        let data = directory.path().join("data");
        let made = command("initdb")
            .args(["--username=coxswain", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .expect("initdb runs");
        assert!(made.success(), "initdb failed");
        prepare(&data);
        Self::on(directory, settings.iter().map(|s| (*s).to_owned()).collect())
    }

    /// On a directory that holds a database in `data` already.
    pub fn on(directory: TempDir, settings: Vec<String>) -> Self {
        let process = run(directory.path(), &settings);
        Self { directory, settings, process }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// As an address of this project's commands.
    pub fn address(&self, schema: &str) -> String {
        let directory = self.directory.path().display().to_string().replace('/', "%2F");
        format!("postgres://coxswain@{directory}/postgres?schema={schema}")
    }

    /// As Postgres' clients take it.
    pub fn url(&self) -> String {
        format!("host={} user=coxswain dbname=postgres", self.directory.path().display())
    }

    /// Ends it without a word to anybody, as a crash would, and starts it again.
    pub fn crash(&mut self) {
        self.end(Signal::SIGQUIT);
        self.process = run(self.directory.path(), &self.settings);
    }

    pub fn kill(&mut self) {
        self.end(Signal::SIGKILL);
    }

    fn end(&mut self, signal: Signal) {
        let _ = kill(nix::unistd::Pid::from_raw(self.process.id() as i32), signal);
        let _ = self.process.wait();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A fast shutdown, which cuts the connections there are.
        self.end(Signal::SIGINT);
    }
}

fn run(directory: &Path, settings: &[String]) -> Child {
    let mut command = command("postgres");
    command.arg("-D").arg(directory.join("data")).args(["-c", "listen_addresses=", "-c", "shared_buffers=32MB"]);
    for setting in settings {
        command.args(["-c", setting]);
    }
    command.arg("-k").arg(directory).stderr(Stdio::null()).spawn().expect("Postgres starts")
}

/// One of Postgres' programs. It refuses to run as root, so root runs it as the user that its package makes.
pub fn command(name: &str) -> Command {
    let program = program(name);
    if !nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

/// Where one of Postgres' programs lies.
///
/// # Panics
/// If Postgres is not installed.
pub fn program(name: &str) -> PathBuf {
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        let program = Path::new(String::from_utf8_lossy(&output.stdout).trim()).join(name);
        if program.exists() {
            return program;
        }
    }
    // Debian keeps the servers of each version apart, and installs pg_config only with the headers.
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("Postgres is installed");
    let mut programs: Vec<PathBuf> = versions.flatten().map(|v| v.path().join("bin").join(name)).collect();
    programs.retain(|p| p.exists());
    programs.sort();
    programs.pop().expect("Postgres is installed")
}

/// Gives a file to the user that the server runs as, if root runs the test.
pub fn own(path: &Path) {
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").expect("users are known").expect("a user named postgres");
        nix::unistd::chown(path, Some(user.uid), Some(user.gid)).expect("root may give files away");
    }
}
