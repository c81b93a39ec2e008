//! The command lines of the components: upstream's flags by name, type and default (upstream: each component's `options`).
//!
//! A table says which flags exist. A flag that was given but that the component never asked for has no meaning here: it is
//! accepted and named in one warning, so that existing command lines keep working and nobody is misled.

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, Command};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A component whose flags are upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    ApiServer,
    ControllerManager,
    CloudControllerManager,
    Scheduler,
    Kubelet,
    Proxy,
}

/// Flags of ours that upstream does not have: name, type, default, help.
const API_SERVER_OWN: &[(&str, &str, &str, &str)] = &[
    ("data-dir", "string", "/var/lib/coxswain/storage", "Where the embedded store keeps its files"),
    ("etcd-username", "string", "", "A user of etcd, where etcd asks for one"),
    ("etcd-password-file", "string", "", "The file with the password of --etcd-username"),
    ("postgres-url", "string", "", "The database of the postgres storage backend"),
];

impl Component {
    pub const ALL: [Component; 6] = [
        Self::ApiServer,
        Self::ControllerManager,
        Self::CloudControllerManager,
        Self::Scheduler,
        Self::Kubelet,
        Self::Proxy,
    ];

    /// The subcommand, and the name of the upstream binary.
    pub fn name(self) -> &'static str {
        match self {
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::CloudControllerManager => "cloud-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::Proxy => "kube-proxy",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Self::ApiServer => "Serves the Kubernetes API",
            Self::ControllerManager => "Runs the controllers that bring the cluster to its desired state",
            Self::CloudControllerManager => "Runs the controllers of the place that the cluster runs in",
            Self::Scheduler => "Assigns pods to nodes",
            Self::Kubelet => "Runs the pods of one node",
            Self::Proxy => "Carries the traffic of Services on one node",
        }
    }

    fn table(self) -> &'static str {
        match self {
            Self::ApiServer => include_str!("../data/flags/kube-apiserver.tsv"),
            Self::ControllerManager => include_str!("../data/flags/kube-controller-manager.tsv"),
            Self::CloudControllerManager => include_str!("../data/flags/cloud-controller-manager.tsv"),
            Self::Scheduler => include_str!("../data/flags/kube-scheduler.tsv"),
            Self::Kubelet => include_str!("../data/flags/kubelet.tsv"),
            Self::Proxy => include_str!("../data/flags/kube-proxy.tsv"),
        }
    }

    fn own(self) -> &'static [(&'static str, &'static str, &'static str, &'static str)] {
        if self == Self::ApiServer { API_SERVER_OWN } else { &[] }
    }

    /// The whole command line as clap sees it.
    pub fn command(self) -> Command {
        let mut command = Command::new(self.name()).about(self.about()).disable_version_flag(true);
        for line in self.table().lines() {
            let mut columns = line.split('\t');
            let (name, kind, default) =
                (columns.next().unwrap_or(""), columns.next().unwrap_or(""), columns.next().unwrap_or(""));
            command = command.arg(argument(name, kind, default, None));
        }
        for (name, kind, default, help) in self.own() {
            command = command.arg(argument(name, kind, default, Some(help)));
        }
        command
    }
}

fn argument(name: &'static str, kind: &'static str, default: &'static str, help: Option<&'static str>) -> Arg {
    let (kind, deprecated) = kind.split_once(" deprecated").map_or((kind, false), |(k, _)| (k, true));
    let mut arg = Arg::new(name).long(name).action(ArgAction::Append).allow_hyphen_values(true);
    arg = match kind {
        // As pflag reads them: `--flag`, `--flag=false`, but not `--flag false`.
        "bool" => arg.num_args(0..=1).require_equals(true).default_missing_value("true").hide_possible_values(true),
        "version[=true]" => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        "Level" => arg.short('v').value_name("LEVEL"),
        other => arg.value_name(other),
    };
    let shown = default.trim_matches('"');
    let help = match (help, deprecated) {
        (Some(help), _) => help.to_owned(),
        (None, true) => "Deprecated upstream".to_owned(),
        (None, false) if shown.is_empty() => String::new(),
        (None, false) => format!("[default: {shown}]"),
    };
    arg.help(help)
}

/// A command line that was understood.
pub struct Flags {
    component: Component,
    matches: clap::ArgMatches,
    asked: RefCell<BTreeSet<String>>,
}

impl Flags {
    pub fn new(component: Component, matches: clap::ArgMatches) -> Self {
        Self { component, matches, asked: RefCell::default() }
    }

    pub fn component(&self) -> Component {
        self.component
    }

    /// The last value given, or upstream's default; none where both are empty.
    pub fn get(&self, name: &str) -> Option<String> {
        let given = self.given(name);
        given.last().cloned().or_else(|| self.default(name)).filter(|v| !v.is_empty())
    }

    /// Every flag with its value, as given or by default.
    pub fn all(&self) -> Vec<(String, String)> {
        let own = self.component.own().iter().map(|(name, ..)| *name);
        let names = self.component.table().lines().filter_map(|l| l.split('\t').next()).chain(own);
        // Showing a value gives it no meaning.
        let value = |name: &str| match self.matches.get_many::<String>(name) {
            Some(given) => given.cloned().collect::<Vec<_>>().join(","),
            None => self.default(name).unwrap_or_default(),
        };
        let mut all: Vec<(String, String)> = names.map(|name| (name.to_owned(), value(name))).collect();
        all.sort();
        all
    }

    /// Whether the flag stood on the command line.
    pub fn is_set(&self, name: &str) -> bool {
        !self.given(name).is_empty()
    }

    /// Every value of a list flag: repeated flags and commas alike.
    pub fn list(&self, name: &str) -> Vec<String> {
        let given = self.given(name);
        let all = if given.is_empty() { self.default(name).into_iter().collect() } else { given };
        all.iter()
            .flat_map(|v| v.trim_matches(['[', ']']).split(','))
            .map(|v| v.trim().to_owned())
            .filter(|v| !v.is_empty())
            .collect()
    }

    pub fn bool(&self, name: &str) -> Result<bool> {
        match self.get(name).as_deref() {
            None => Ok(false),
            Some("true" | "True" | "TRUE" | "t" | "T" | "1") => Ok(true),
            Some("false" | "False" | "FALSE" | "f" | "F" | "0") => Ok(false),
            Some(other) => bail!("invalid argument \"{other}\" for \"--{name}\" flag: not a boolean"),
        }
    }

    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }

    pub fn parsed<T>(&self, name: &str) -> Result<Option<T>>
    where
        T: std::str::FromStr,
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        self.get(name)
            .map(|v| v.parse::<T>().with_context(|| format!("invalid argument \"{v}\" for \"--{name}\" flag")))
            .transpose()
    }

    pub fn ip(&self, name: &str) -> Result<Option<IpAddr>> {
        self.parsed(name)
    }

    /// A Go duration such as `1h30m`.
    pub fn duration(&self, name: &str) -> Result<Option<Duration>> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match go_duration(&text) {
            Some(duration) => Ok(Some(duration)),
            None => bail!("invalid argument \"{text}\" for \"--{name}\" flag: time: invalid duration \"{text}\""),
        }
    }

    /// The flags that were given and never asked for.
    pub fn without_meaning(&self) -> Vec<String> {
        let asked = self.asked.borrow();
        let ids = self.matches.ids().map(clap::Id::as_str);
        ids.filter(|id| self.matches.value_source(id) == Some(clap::parser::ValueSource::CommandLine))
            .filter(|id| !asked.contains(*id))
            .map(|id| format!("--{id}"))
            .collect()
    }

    /// Says once which flags do nothing here. Call it when the component has read all it wants.
    pub fn warn_without_meaning(&self) {
        let flags = self.without_meaning();
        if !flags.is_empty() {
            tracing::warn!(component = self.component.name(), flags = flags.join(" "), "these flags have no effect");
        }
    }

    fn given(&self, name: &str) -> Vec<String> {
        self.asked.borrow_mut().insert(name.to_owned());
        self.matches.get_many::<String>(name).map(|v| v.cloned().collect()).unwrap_or_default()
    }

    fn default(&self, name: &str) -> Option<String> {
        let own = self.component.own().iter().find(|(n, ..)| *n == name).map(|(_, _, d, _)| *d);
        let upstream = || {
            self.component.table().lines().find_map(|line| {
                let mut columns = line.split('\t');
                (columns.next() == Some(name)).then(|| columns.nth(1).unwrap_or(""))
            })
        };
        own.or_else(upstream).map(|d| d.trim_matches('"').to_owned())
    }
}

/// Go's duration text: a sequence of numbers with units.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number
            * match &rest[..end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[end..];
    }
    (!text.is_empty() && seconds.is_finite()).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(component: Component, args: &[&str]) -> Flags {
        let args = std::iter::once(component.name()).chain(args.iter().copied());
        Flags::new(component, component.command().try_get_matches_from(args).unwrap())
    }

    #[test]
    fn a_flag_never_asked_for_is_reported() {
        let flags = flags(Component::ApiServer, &["--secure-port=7443", "--profiling=false", "--allow-privileged"]);
        assert_eq!(flags.parsed::<u16>("secure-port").unwrap(), Some(7443));
        assert!(flags.bool("allow-privileged").unwrap());
        assert_eq!(flags.without_meaning(), ["--profiling"]);
    }

    #[test]
    fn defaults_are_upstreams() {
        let flags = flags(Component::ApiServer, &[]);
        assert_eq!(flags.parsed::<u16>("secure-port").unwrap(), Some(6443));
        assert_eq!(flags.duration("etcd-compaction-interval").unwrap(), Some(Duration::from_secs(300)));
        assert_eq!(flags.get("etcd-prefix").as_deref(), Some("/registry"));
    }

    #[test]
    fn an_unknown_flag_is_an_error() {
        for component in Component::ALL {
            assert!(component.command().try_get_matches_from([component.name(), "--no-such-flag=1"]).is_err());
            component.command().debug_assert();
        }
    }

    #[test]
    fn lists_take_commas_and_repetition() {
        let flags = flags(Component::ApiServer, &["--authorization-mode=Node,RBAC", "--authorization-mode=Webhook"]);
        assert_eq!(flags.list("authorization-mode"), ["Node", "RBAC", "Webhook"]);
    }
}
