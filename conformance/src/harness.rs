//! What a case gets: a namespace of its own, kubectl, and ways of waiting that say what they waited for.

use crate::transcript;
use anyhow::{Context, Result, anyhow, bail};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

/// A case may take this long before it counts as failed.
const CASE_SECONDS_MAX: u64 = 240;
/// One call of kubectl that does not wait for anything.
const KUBECTL_SECONDS_MAX: u64 = 90;

pub struct Case {
    pub group: &'static str,
    pub name: &'static str,
    pub body: Body,
    /// It changes what all share (a node, say), so nothing else runs beside it.
    pub alone: bool,
}

pub enum Body {
    Code(for<'a> fn(&'a Sandbox) -> BoxFuture<'a, Result<()>>),
    /// A shell session, see [`crate::transcript`].
    Transcript(&'static str),
}

/// A cluster as one kubectl sees it.
pub struct Cluster {
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    pub kubectl_version: String,
    /// Whether shell sessions print what they see.
    show: bool,
}

/// A case's own namespace. `kubectl` works in it.
pub struct Sandbox<'c> {
    cluster: &'c Cluster,
    pub namespace: String,
}

impl Cluster {
    pub fn connect(kubeconfig: &Path, kubectl: &Path, show: bool) -> Result<Self> {
        let output = std::process::Command::new(kubectl)
            .args(["version", "--client", "-o", "json"])
            .output()
            .with_context(|| format!("running {}", kubectl.display()))?;
        let version: Value = serde_json::from_slice(&output.stdout).context("reading kubectl's version")?;
        let version = version["clientVersion"]["gitVersion"].as_str().unwrap_or("unknown").to_owned();
        Ok(Self { kubeconfig: kubeconfig.to_owned(), kubectl: kubectl.to_owned(), kubectl_version: version, show })
    }

    pub async fn run(&self, case: &Case, keep: bool) -> Result<()> {
        let namespace = format!("c-{}-{:04x}", case.name.replace('_', "-"), rand::random::<u16>());
        let sandbox = Sandbox { cluster: self, namespace };
        sandbox.cluster_kubectl(&["create", "namespace", &sandbox.namespace]).await?;
        let limit = Duration::from_secs(CASE_SECONDS_MAX);
        let run = match case.body {
            Body::Code(code) => code(&sandbox),
            Body::Transcript(text) => transcript::run(&sandbox, text).boxed(),
        };
        let outcome = match tokio::time::timeout(limit, run).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow!("not finished after {CASE_SECONDS_MAX} s")),
        };
        let outcome = match outcome {
            Ok(()) => Ok(()),
            Err(e) => Err(e.context(sandbox.state().await)),
        };
        if outcome.is_ok() || !keep {
            let _ = sandbox.cluster_kubectl(&["delete", "namespace", &sandbox.namespace, "--wait=false"]).await;
        }
        outcome
    }
}

/// What kubectl said.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl<'c> Sandbox<'c> {
    /// kubectl in the case's namespace; an error if it ends with another code than 0.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["--namespace", &self.namespace];
        all.extend(args);
        self.cluster_kubectl(&all).await
    }

    pub async fn cluster_kubectl(&self, args: &[&str]) -> Result<String> {
        let output = self.try_kubectl(args, None).await?;
        if output.code != 0 {
            bail!("kubectl {} ended with {}: {}{}", args.join(" "), output.code, output.stderr, output.stdout);
        }
        Ok(output.stdout)
    }

    /// kubectl with text on its standard input, in the case's namespace.
    pub async fn kubectl_with_input(&self, args: &[&str], input: &str) -> Result<String> {
        let mut all = vec!["--namespace", &self.namespace];
        all.extend(args);
        let output = self.try_kubectl(&all, Some(input)).await?;
        if output.code != 0 {
            bail!("kubectl {} ended with {}: {}{}", args.join(" "), output.code, output.stderr, output.stdout);
        }
        Ok(output.stdout)
    }

    /// kubectl, whatever its exit code.
    pub async fn try_kubectl(&self, args: &[&str], input: Option<&str>) -> Result<Output> {
        let mut command = self.command(args);
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command.spawn().context("starting kubectl")?;
        if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
            stdin.write_all(text.as_bytes()).await?;
        }
        let limit = Duration::from_secs(KUBECTL_SECONDS_MAX);
        let output = tokio::time::timeout(limit, child.wait_with_output())
            .await
            .map_err(|_| anyhow!("kubectl {} did not end within {KUBECTL_SECONDS_MAX} s", args.join(" ")))??;
        Ok(Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// kubectl left running in the case's namespace; it ends when dropped.
    pub fn kubectl_background(&self, args: &[&str]) -> Result<Child> {
        let mut all = vec!["--namespace", &self.namespace];
        all.extend(args);
        let mut command = self.command(&all);
        command.stdin(Stdio::null());
        command.spawn().context("starting kubectl")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.cluster.kubectl);
        command
            .arg("--kubeconfig")
            .arg(&self.cluster.kubeconfig)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub fn shows(&self) -> bool {
        self.cluster.show
    }

    pub fn kubectl_path(&self) -> &Path {
        &self.cluster.kubectl
    }

    pub fn kubeconfig(&self) -> &Path {
        &self.cluster.kubeconfig
    }

    pub fn kubectl_version(&self) -> &str {
        &self.cluster.kubectl_version
    }

    /// The path of kubectl and its first arguments, for cases that wrap it in another program.
    pub fn kubectl_line(&self) -> String {
        format!(
            "'{}' --kubeconfig '{}' --namespace '{}'",
            self.cluster.kubectl.display(),
            self.cluster.kubeconfig.display(),
            self.namespace
        )
    }

    pub async fn apply(&self, yaml: &str) -> Result<String> {
        self.kubectl_with_input(&["apply", "-f", "-"], yaml).await
    }

    pub async fn get(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        serde_json::from_str(&self.kubectl(&all).await?).context("reading kubectl's JSON")
    }

    /// Asks again until the answer is `Some`, at most `seconds` long. The last error is part of the failure.
    pub async fn eventually<T, F, Fut>(&self, what: &str, seconds: u64, mut ask: F) -> Result<T>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<Option<T>>>,
    {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut last = None;
        loop {
            match ask().await {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(e) => last = Some(e),
            }
            if Instant::now() >= end {
                return Err(last.unwrap_or_else(|| anyhow!("it never came true")))
                    .with_context(|| format!("waited {seconds} s for {what}"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The names of the pods with these labels that are ready and not being deleted.
    pub async fn ready_pods(&self, selector: &str) -> Result<Vec<String>> {
        let pods = self.get(&["pods", "-l", selector]).await?;
        let ready = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array();
            let is_ready = conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
            is_ready && pod["metadata"]["deletionTimestamp"].is_null()
        };
        let items = pods["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(items.iter().filter(ready).filter_map(|p| p["metadata"]["name"].as_str()).map(str::to_owned).collect())
    }

    /// What a person would look at first when a case failed.
    async fn state(&self) -> String {
        let objects = self.kubectl(&["get", "all,endpointslices", "-o", "wide"]).await.unwrap_or_default();
        let events = self.kubectl(&["get", "events", "--sort-by=.lastTimestamp"]).await.unwrap_or_default();
        let events: Vec<&str> = events.lines().rev().take(15).collect();
        let events: Vec<&str> = events.into_iter().rev().collect();
        format!("state of {}:\n{objects}\n{}\nfailure", self.namespace, events.join("\n"))
    }
}
