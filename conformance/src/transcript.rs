//! Shell sessions as test data: commands and what they must print.
//!
//! A transcript is read like a terminal. Lines of these forms have a meaning, every other line is expected output:
//!
//! ```text
//! # a comment, also what the next commands are about
//! @file NAME … @end     write the lines between to a file
//! @retry SECONDS        ask the next command again until it answers as expected
//! @since 1.30           the next command is for kubectl of this minor version or a newer one
//! @until 1.33           … or an older one
//! $ COMMAND             run it by bash, kubectl being the one under test; `> ` continues it
//! ? CODE                the exit code of the command above, 0 if not said
//! ...                   any lines, or none
//! ```
//!
//! Output and errors come in the order they were written. Runs of white space are equal to each other, since the width of
//! a column depends on its longest value. `<age>`, `<repeated>` (the age of an event, and how often it was seen), `<n>`,
//! `<ip>`, `<id>` (one word) and `<any>` stand for what differs from run to run,
//! `<ns>` and `<node>` for the namespace of the case and the name of the (first) node, and the names in [`WORDINGS`] for what
//! kubectl's versions say each in its own way. A line that begins with `<1.30+>` or `<1.29->`, or with both, is expected of
//! kubectl of this minor version and newer or older ones only.

use crate::harness::Sandbox;
use anyhow::{Context, Result, bail};
use regex::Regex;
use std::fmt::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// One command may take this long, and longer only by its own `@retry`.
const COMMAND_SECONDS_MAX: u64 = 120;
/// Later commands mostly fail because of earlier ones.
const FAILURES_MAX: usize = 12;

/// Words that many commands print, until a minor version and since then.
const WORDINGS: &[(&str, u32, &str, &str)] =
    &[("<from>", 34, "", " from <ns> namespace"), ("<annotated>", 28, "annotate", "annotated")];

#[derive(Debug, Default, PartialEq)]
struct Step {
    line: usize,
    command: String,
    code: i32,
    output: Vec<String>,
    retry_seconds: u64,
    since: Option<u32>,
    until: Option<u32>,
}

#[derive(Debug, PartialEq)]
enum Item {
    Run(Step),
    File { name: String, content: String },
}

fn minor(version: &str) -> Result<u32> {
    version.trim().strip_prefix("1.").and_then(|m| m.parse().ok()).with_context(|| format!("{version:?} is no 1.N"))
}

fn parse(text: &str) -> Result<Vec<Item>> {
    let mut items: Vec<Item> = Vec::new();
    let mut next = Step::default();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let current = match items.last_mut() {
            Some(Item::Run(step)) => Some(step),
            _ => None,
        };
        if line.starts_with('#') {
            continue;
        } else if let Some(name) = line.strip_prefix("@file ") {
            let content = lines
                .by_ref()
                .map(|(_, l)| l)
                .take_while(|l| *l != "@end")
                .fold(String::new(), |all, l| all + l + "\n");
            items.push(Item::File { name: name.trim().to_owned(), content });
        } else if let Some(seconds) = line.strip_prefix("@retry ") {
            next.retry_seconds = seconds.trim().parse().with_context(|| format!("line {}", number + 1))?;
        } else if let Some(version) = line.strip_prefix("@since ") {
            next.since = Some(minor(version)?);
        } else if let Some(version) = line.strip_prefix("@until ") {
            next.until = Some(minor(version)?);
        } else if let Some(command) = line.strip_prefix("$ ") {
            let step = std::mem::take(&mut next);
            items.push(Item::Run(Step { line: number + 1, command: command.to_owned(), ..step }));
        } else if let (Some(more), Some(step)) =
            (line.strip_prefix("> "), current.as_ref().map(|s| s.output.is_empty()))
        {
            if let (true, Some(Item::Run(step))) = (step, items.last_mut()) {
                write!(step.command, "\n{more}")?;
            }
        } else if let (Some(code), Some(step)) = (line.strip_prefix("? "), items.last_mut()) {
            let Item::Run(step) = step else { bail!("line {}: an exit code without a command", number + 1) };
            step.code = code.trim().parse().with_context(|| format!("line {}", number + 1))?;
        } else if !line.is_empty() {
            let Some(Item::Run(step)) = items.last_mut() else {
                bail!("line {}: output without a command", number + 1)
            };
            step.output.push(line.to_owned());
        }
    }
    Ok(items)
}

/// One expected line as a regular expression.
fn pattern(line: &str, namespace: &str, node: &str) -> Result<Regex> {
    let words: Vec<String> = line
        .split_whitespace()
        .map(|word| {
            regex::escape(word)
                .replace("<age>", r"(?:\d+[smhdy])+|<unknown>|<invalid>")
                .replace("<repeated>", r"\d+[smhdy]\S*(?:\s\(x\d+\sover\s\S+\))?")
                .replace("<n>", r"\d+")
                .replace("<ip>", r"[0-9a-f.:]+")
                .replace("<id>", r"\S+")
                .replace("<any>", r".*")
                .replace("<ns>", &regex::escape(namespace))
                .replace("<node>", &regex::escape(node))
        })
        // Each word is a group of its own, so that an alternative does not swallow the line.
        .map(|word| format!("(?:{word})"))
        .collect();
    Ok(Regex::new(&format!("^{}$", words.join(r"\s")))?)
}

/// One line of what is expected.
enum Line {
    Gap,
    Like(Regex),
}

fn lines(expected: &[String], minor: u32, namespace: &str, node: &str) -> Result<Vec<Line>> {
    let mut all = Vec::new();
    for line in expected.iter().map(|line| line.trim()) {
        match spoken(line, minor)? {
            Some("...") => all.push(Line::Gap),
            Some(text) => all.push(Line::Like(pattern(&worded(text, minor), namespace, node)?)),
            None => {}
        }
    }
    Ok(all)
}

/// A line without what says of which versions it is expected; none if this is not one of them.
fn spoken(mut line: &str, version: u32) -> Result<Option<&str>> {
    while let Some((bound, text)) = line.strip_prefix("<1.").and_then(|rest| rest.split_once('>')) {
        let number = |text: &str| text.parse::<u32>().with_context(|| format!("{bound:?} is no N+ and no N-"));
        let said = match bound.strip_suffix('+') {
            Some(since) => version >= number(since)?,
            None => version <= number(bound.strip_suffix('-').unwrap_or_default())?,
        };
        if !said {
            return Ok(None);
        }
        line = text.trim_start();
    }
    Ok(Some(line))
}

/// An expected line as this minor version words it.
fn worded(line: &str, minor: u32) -> String {
    WORDINGS.iter().fold(line.to_owned(), |line, (name, since, before, now)| {
        line.replace(name, if minor >= *since { now } else { before })
    })
}

/// After each number of expected lines, the numbers of printed lines that can be what they describe. A gap takes as many
/// as it needs.
fn reachable(expected: &[Line], actual: &[String]) -> Vec<Vec<bool>> {
    let mut reached = vec![false; actual.len() + 1];
    reached[0] = true;
    let mut all = vec![reached];
    for line in expected {
        let before = &all[all.len() - 1];
        let after = (0..=actual.len())
            .map(|n| match line {
                Line::Gap => before[..=n].contains(&true),
                Line::Like(regex) => n > 0 && before[n - 1] && regex.is_match(&actual[n - 1]),
            })
            .collect();
        all.push(after);
    }
    all
}

/// Whether the printed lines are the expected ones.
fn matches(expected: &[Line], actual: &[String]) -> bool {
    reachable(expected, actual).last().is_some_and(|after| after[actual.len()])
}

/// The number of the first expected line that the output cannot be brought to agree with, if it is not that more was printed.
fn first_difference(expected: &[Line], actual: &[String]) -> Option<usize> {
    reachable(expected, actual)[1..].iter().position(|after| !after.contains(&true))
}

fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Older versions of kubectl begin to read from a WebSocket before they know their own streams, so that the empty message with
/// which a server says that it is there may come too early. They report it and go on.
fn is_noise(line: &str) -> bool {
    line.contains("websocket.go:") && line.ends_with("] Unknown stream id 1, discarding message")
}

/// Runs a transcript in the case's namespace. The error names every command that answered otherwise.
pub async fn run(sandbox: &Sandbox<'_>, text: &str) -> Result<()> {
    let items = parse(text)?;
    let shell = Shell::open(sandbox).await?;
    let mut failures = Vec::new();
    for item in items {
        let step = match item {
            Item::File { name, content } => {
                std::fs::write(shell.dir.path().join(&name), content).with_context(|| format!("writing {name}"))?;
                continue;
            }
            Item::Run(step) => step,
        };
        if step.since.is_some_and(|v| shell.kubectl_minor < v) || step.until.is_some_and(|v| shell.kubectl_minor > v) {
            continue;
        }
        if let Some(failure) = shell.check(sandbox, &step).await? {
            failures.push(failure);
        }
        if failures.len() >= FAILURES_MAX {
            failures.push("the rest was not tried".to_owned());
            break;
        }
    }
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("\n")) }
}

/// How many commands a transcript has.
pub fn commands(text: &str) -> usize {
    text.lines().filter(|l| l.starts_with("$ ")).count()
}

/// A directory with files, a kubeconfig whose namespace is the case's, and the kubectl under test by its plain name.
struct Shell {
    dir: tempfile::TempDir,
    path: String,
    node: String,
    kubectl_minor: u32,
}

impl Shell {
    async fn open(sandbox: &Sandbox<'_>) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let bin = dir.path().join(".bin");
        std::fs::create_dir(&bin)?;
        std::os::unix::fs::symlink(std::fs::canonicalize(sandbox.kubectl_path())?, bin.join("kubectl"))?;
        std::fs::copy(sandbox.kubeconfig(), dir.path().join(".kubeconfig"))?;
        let node = sandbox.cluster_kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]).await?;
        let version = sandbox.kubectl_version().split('.').nth(1).and_then(|m| m.parse().ok());
        let kubectl_minor = version.context("kubectl's version has no minor number")?;
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let shell = Self { dir, path, node, kubectl_minor };
        let set = format!("kubectl config set-context --current --namespace={}", sandbox.namespace);
        let (code, output) = shell.bash(sandbox, &set, COMMAND_SECONDS_MAX).await?;
        if code != 0 {
            bail!("{set}: {output}");
        }
        Ok(shell)
    }

    async fn bash(&self, sandbox: &Sandbox<'_>, command: &str, seconds: u64) -> Result<(i32, String)> {
        let child = tokio::process::Command::new("bash")
            .args(["-c", &format!("exec 2>&1\n{command}")])
            .current_dir(self.dir.path())
            .env("PATH", &self.path)
            .env("HOME", self.dir.path())
            .env("KUBECONFIG", self.dir.path().join(".kubeconfig"))
            .env("NS", &sandbox.namespace)
            .env("NODE", &self.node)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting bash")?;
        match tokio::time::timeout(Duration::from_secs(seconds), child.wait_with_output()).await {
            Ok(output) => {
                let output = output?;
                Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned()))
            }
            Err(_) => Ok((-1, format!("not ended after {seconds} s"))),
        }
    }

    /// What differs, if anything.
    async fn check(&self, sandbox: &Sandbox<'_>, step: &Step) -> Result<Option<String>> {
        let end = Instant::now() + Duration::from_secs(step.retry_seconds);
        let expected = lines(&step.output, self.kubectl_minor, &sandbox.namespace, &self.node)?;
        loop {
            let (code, output) = self.bash(sandbox, &step.command, COMMAND_SECONDS_MAX).await?;
            let actual: Vec<String> =
                output.lines().filter(|l| !is_noise(l)).map(words).filter(|l| !l.is_empty()).collect();
            if code == step.code && matches(&expected, &actual) {
                if sandbox.shows() {
                    println!("$ {}\n{output}? {code}", step.command);
                }
                return Ok(None);
            }
            if Instant::now() >= end {
                let mut text = format!("line {}: $ {}\n", step.line, step.command);
                if code != step.code {
                    writeln!(text, "  exit code {code}, expected {}", step.code)?;
                }
                let difference = first_difference(&expected, &actual).map_or("more was printed".to_owned(), |n| {
                    match &expected[n] {
                        Line::Gap => "...".to_owned(),
                        Line::Like(regex) => regex.to_string(),
                    }
                });
                writeln!(text, "  expected (-), printed (+); first difference: {difference}")?;
                step.output.iter().try_for_each(|l| writeln!(text, "  - {l}"))?;
                output.lines().take(60).try_for_each(|l| writeln!(text, "  + {l}"))?;
                return Ok(Some(text));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees(expected: &str, actual: &str) -> bool {
        let read = |text: &str| text.lines().map(words).filter(|l| !l.is_empty()).collect::<Vec<_>>();
        matches(&lines(&read(expected), 36, "space", "node-1").unwrap(), &read(actual))
    }

    #[test]
    fn placeholders_and_gaps_take_what_differs_and_nothing_else() {
        assert!(agrees("web  1/1  <age>", "web   1/1    3m12s"));
        assert!(!agrees("web  1/1  <age>", "web   0/1    3m12s"));
        assert!(!agrees("web  1/1", "web   1/1    3m12s"));
        assert!(agrees("a\n...\nz in <ns>", "a\nb\nc\nz in space"));
        assert!(!agrees("a\n...\nz", "a\nb"));
        assert!(agrees("...", ""));
        assert!(!agrees("", "unexpected"));
        assert!(agrees("svc <ip> <node>", "svc 10.96.0.1 node-1"));
        assert!(!agrees("(x)", "x"));
        assert!(agrees("a deleted<from>", "a deleted from space namespace"));
        assert_eq!(worded("a deleted<from>", 33), "a deleted");
        assert!(agrees("a\n<1.30+> b\n<1.35-> c\n<1.30+> <1.36-> d", "a\nb\nd"));
        assert!(spoken("<1.x+> a", 36).is_err());
        let expected = lines(&["a".into(), "...".into(), "z".into()], 36, "space", "node-1").unwrap();
        assert_eq!(first_difference(&expected, &["a".into(), "b".into()]), Some(2));
        assert_eq!(first_difference(&expected, &["z".into()]), Some(0));
    }

    #[test]
    fn a_transcript_is_read_line_by_line() {
        let text =
            "# about\n@file a.yaml\nkind: Pod\n@end\n@since 1.30\n@retry 5\n$ kubectl get pods |\n> wc -l\n3\n? 1\n";
        let items = parse(text).unwrap();
        assert_eq!(items[0], Item::File { name: "a.yaml".into(), content: "kind: Pod\n".into() });
        let step = Step {
            line: 7,
            command: "kubectl get pods |\nwc -l".into(),
            code: 1,
            output: vec!["3".into()],
            retry_seconds: 5,
            since: Some(30),
            until: None,
        };
        assert_eq!(items[1], Item::Run(step));
        assert!(parse("output without a command").is_err());
    }
}
