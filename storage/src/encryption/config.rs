//! The file of `--encryption-provider-config`: an EncryptionConfiguration of `apiserver.config.k8s.io/v1` (upstream:
//! `apis/apiserver/v1/types_encryption.go` and `apis/apiserver/validation/validation_encryption.go`).

use super::ConfigError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Configuration {
    pub(super) resources: Vec<Rule>,
    /// What is wrong with the providers themselves, found while they were told apart.
    provider_errors: Vec<(usize, usize, &'static str)>,
}

/// Who seals which resources.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) resources: Vec<String>,
    /// With the place at which each is listed.
    pub(super) providers: Vec<(usize, Provider)>,
}

#[derive(Debug)]
pub(super) enum Provider {
    Aesgcm(Vec<Key>),
    Aescbc(Vec<Key>),
    Secretbox(Vec<Key>),
    Identity,
    Kms(Kms),
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Key {
    pub(super) name: String,
    secret: String,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Name: {}, Secret: [REDACTED]", self.name)
    }
}

impl Key {
    pub(super) fn decoded(&self) -> Result<Vec<u8>, base64::DecodeError> {
        // Go's decoder passes over line ends.
        let text: String = self.secret.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
        STANDARD.decode(text)
    }
}

#[derive(Debug)]
pub(super) struct Kms {
    pub(super) api_version: String,
    pub(super) name: String,
    pub(super) endpoint: String,
    pub(super) timeout: Duration,
    cache_size: Option<i64>,
    /// As it was written, if it is not above zero.
    bad_timeout: Option<String>,
}

/// The text of the file and the hash of it.
pub(super) fn read(path: &Path) -> Result<(String, String), ConfigError> {
    let shown = format!("{:?}", path.display().to_string());
    let bytes = std::fs::read(path).map_err(|e| {
        ConfigError(format!(
            "error reading encryption provider configuration file {shown}: open {}: {e}",
            path.display()
        ))
    })?;
    if bytes.is_empty() {
        return Err(ConfigError(format!("encryption provider configuration file {shown} is empty")));
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
    let hash = format!("sha256:{}", super::kms::hex(digest.as_ref()));
    let text = String::from_utf8(bytes)
        .map_err(|_| ConfigError(format!("encryption provider configuration file {shown} is not text")))?;
    Ok((text, hash))
}

/// The fields of each struct: a field of another name is an error.
const FIELDS: &[(&str, &[(&str, &str)])] = &[
    ("config", &[("apiVersion", ""), ("kind", ""), ("resources", "[rule")]),
    ("rule", &[("resources", ""), ("providers", "[provider")]),
    (
        "provider",
        &[("aesgcm", "keys"), ("aescbc", "keys"), ("secretbox", "keys"), ("identity", "none"), ("kms", "kms")],
    ),
    ("keys", &[("keys", "[key")]),
    ("key", &[("name", ""), ("secret", "")]),
    ("none", &[]),
    ("kms", &[("apiVersion", ""), ("name", ""), ("cachesize", ""), ("endpoint", ""), ("timeout", "")]),
];

fn unknown_fields(value: &Value, of: &str, path: &str, found: &mut Vec<String>) {
    let (list, of) = of.strip_prefix('[').map_or((false, of), |of| (true, of));
    if list {
        for (i, item) in value.as_array().into_iter().flatten().enumerate() {
            unknown_fields(item, of, &format!("{path}[{i}]"), found);
        }
        return;
    }
    let (Some(map), Some((_, fields))) = (value.as_object(), FIELDS.iter().find(|(name, _)| *name == of)) else {
        return;
    };
    for (name, value) in map {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match fields.iter().find(|(field, _)| field == name) {
            Some((_, "")) => {}
            Some((_, inner)) => unknown_fields(value, inner, &path, found),
            None => found.push(format!("unknown field \"{path}\"")),
        }
    }
}

pub(super) fn parse(text: &str, path: &Path) -> Result<Configuration, ConfigError> {
    let refuse = |why: String| {
        let shown = path.display().to_string();
        ConfigError(format!("error decoding encryption provider configuration file {shown:?}: {why}"))
    };
    let value: Value = serde_yaml_ng::from_str(text).map_err(|e| refuse(e.to_string()))?;
    let (version, kind) = (value["apiVersion"].as_str().unwrap_or(""), value["kind"].as_str().unwrap_or(""));
    if kind.is_empty() {
        return Err(refuse("Object 'Kind' is missing".into()));
    }
    if version.is_empty() {
        return Err(refuse("Object 'apiVersion' is missing".into()));
    }
    // The first name is the one that Kubernetes 1.12 and before knew.
    let known = [("v1", "EncryptionConfig"), ("apiserver.config.k8s.io/v1", "EncryptionConfiguration")];
    if !known.contains(&(version, kind)) {
        return Err(refuse(format!("no kind {kind:?} is registered for version {version:?}")));
    }
    let mut unknown = Vec::new();
    unknown_fields(&value, "config", "", &mut unknown);
    if !unknown.is_empty() {
        return Err(refuse(format!("strict decoding error: {}", unknown.join(", "))));
    }
    read_configuration(&value).map_err(refuse)
}

fn read_configuration(value: &Value) -> Result<Configuration, String> {
    let mut configuration = Configuration { resources: Vec::new(), provider_errors: Vec::new() };
    for (i, rule) in list(&value["resources"], "resources")?.iter().enumerate() {
        let resources: Vec<String> = list(&rule["resources"], "resources.resources")?
            .iter()
            .map(|r| r.as_str().map(str::to_owned).ok_or("resources.resources: a text is wanted"))
            .collect::<Result<_, _>>()?;
        let mut providers = Vec::new();
        for (j, provider) in list(&rule["providers"], "resources.providers")?.iter().enumerate() {
            let named: Vec<(&String, &Value)> =
                provider.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null()).collect();
            let [(name, settings)] = named[..] else {
                configuration.provider_errors.push((i, j, if named.is_empty() { NO_PROVIDER } else { TWO_PROVIDERS }));
                continue;
            };
            let keys = || -> Result<Vec<Key>, String> {
                serde_json::from_value(
                    settings.get("keys").cloned().filter(|k| !k.is_null()).unwrap_or(Value::Array(vec![])),
                )
                .map_err(|e| format!("{name}.keys: {e}"))
            };
            let provider = match name.as_str() {
                "aesgcm" => Provider::Aesgcm(keys()?),
                "aescbc" => Provider::Aescbc(keys()?),
                "secretbox" => Provider::Secretbox(keys()?),
                "identity" => Provider::Identity,
                _ => Provider::Kms(kms(settings)?),
            };
            providers.push((j, provider));
        }
        configuration.resources.push(Rule { resources, providers });
    }
    Ok(configuration)
}

fn list<'a>(value: &'a Value, what: &str) -> Result<&'a [Value], String> {
    match value {
        Value::Null => Ok(&[]),
        Value::Array(items) => Ok(items),
        _ => Err(format!("{what}: a list is wanted")),
    }
}

fn kms(settings: &Value) -> Result<Kms, String> {
    let text = |name: &str| match &settings[name] {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        _ => Err(format!("kms.{name}: a text is wanted")),
    };
    let mut api_version = text("apiVersion")?;
    if api_version.is_empty() {
        api_version = "v1".into();
    }
    let (mut timeout, mut bad_timeout) = (Duration::from_secs(3), None);
    let said = text("timeout")?;
    if !said.is_empty() {
        match duration(&said) {
            Some(duration) if !duration.is_zero() => timeout = duration,
            Some(_) => bad_timeout = Some(said),
            None if said.starts_with('-') && duration(&said[1..]).is_some() => bad_timeout = Some(said),
            None => return Err(format!("time: invalid duration {said:?}")),
        }
    }
    let cache_size = settings["cachesize"].as_i64().or((api_version == "v1").then_some(1000));
    Ok(Kms { name: text("name")?, endpoint: text("endpoint")?, api_version, timeout, cache_size, bad_timeout })
}

/// A Go duration, such as `3s` or `1m500ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            "" if text == "0" => 0.0,
            _ => return None,
        };
        seconds += number * unit;
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

/// `deployments.apps` as resource and group; the core group is empty.
pub(super) fn group_resource(text: &str) -> (&str, &str) {
    text.split_once('.').unwrap_or((text, ""))
}

const NO_PROVIDER: &str =
    "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity";
const TWO_PROVIDERS: &str =
    "more than one provider specified in a single element, should split into different list elements";

/// Everything that is wrong, as one error.
pub(super) fn validate(configuration: &Configuration, reload: bool) -> Result<(), ConfigError> {
    let mut errors = Vec::new();
    if configuration.resources.is_empty() {
        errors.push(required("resources", "at least one resources is required"));
    }
    let mut names: Vec<&str> = Vec::new();
    for (i, rule) in configuration.resources.iter().enumerate() {
        let (resources, providers) = (format!("resources[{i}].resources"), format!("resources[{i}].providers"));
        if rule.resources.is_empty() {
            errors.push(required(&resources, &format!("at least one {resources} is required")));
        }
        validate_overlap(&rule.resources, &resources, &mut errors);
        for (j, resource) in rule.resources.iter().enumerate() {
            if let Some(why) = wrong_resource(resource) {
                errors.push(invalid(&format!("{resources}[{j}]"), &format!("{resource:?}"), why));
            }
        }
        let broken: Vec<_> = configuration.provider_errors.iter().filter(|(rule, ..)| *rule == i).collect();
        if rule.providers.is_empty() && broken.is_empty() {
            errors.push(required(&providers, &format!("at least one {providers} is required")));
        }
        errors.extend(broken.iter().map(|(_, j, why)| invalid(&format!("{providers}[{j}]"), "{}", why)));
        for (j, provider) in &rule.providers {
            let path = format!("{providers}[{j}]");
            match provider {
                Provider::Aesgcm(keys) => {
                    validate_keys(keys, &format!("{path}.aesgcm.keys"), &[16, 24, 32], &mut errors)
                }
                Provider::Aescbc(keys) => {
                    validate_keys(keys, &format!("{path}.aescbc.keys"), &[16, 24, 32], &mut errors)
                }
                Provider::Secretbox(keys) => validate_keys(keys, &format!("{path}.secretbox.keys"), &[32], &mut errors),
                Provider::Identity => {}
                Provider::Kms(kms) => {
                    validate_kms(kms, &format!("{path}.kms"), &names, reload, &mut errors);
                    names.push(&kms.name);
                }
            }
        }
    }
    match errors.len() {
        0 => Ok(()),
        1 => Err(ConfigError(errors.remove(0))),
        _ => Err(ConfigError(format!("[{}]", errors.join(", ")))),
    }
}

fn required(path: &str, why: &str) -> String {
    format!("{path}: Required value: {why}")
}

fn invalid(path: &str, value: &str, why: &str) -> String {
    format!("{path}: Invalid value: {value}: {why}")
}

fn validate_overlap(resources: &[String], path: &str, errors: &mut Vec<String>) {
    let parsed: Vec<(&str, &str)> = resources.iter().map(|r| group_resource(r)).collect();
    let pairs = || parsed.iter().enumerate().flat_map(|(i, a)| parsed[i + 1..].iter().map(move |b| (a, b)));
    let shown = serde_json::to_string(resources).unwrap_or_default();
    if pairs().any(|(a, b)| a == b) {
        errors.push(invalid(path, &shown, "the same resource cannot be specified multiple times"));
    }
    let everything = |r: &(&str, &str)| *r == ("*", "*");
    let overlaps = |a: &(&str, &str), b: &(&str, &str)| {
        a != b && (everything(a) || everything(b) || (a.1 == b.1 && (a.0 == "*" || b.0 == "*")))
    };
    if pairs().any(|(a, b)| overlaps(a, b)) {
        errors.push(invalid(
            path,
            &shown,
            "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked",
        ));
    }
}

fn wrong_resource(resource: &str) -> Option<&'static str> {
    let (name, group) = group_resource(resource);
    Some(match (resource, name, group) {
        _ if resource.to_lowercase() != resource => "resource name should not contain capital letters",
        ("*", ..) => "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources",
        ("apiserveripinfo" | "serviceipallocations" | "servicenodeportallocations", ..) => {
            "resources which do not have REST API/s cannot be encrypted"
        }
        (_, _, "events.k8s.io") => {
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file"
        }
        (_, _, "extensions") => "'extensions' group has been removed and cannot be used for encryption",
        (_, name, "*") if name != "*" => "encrypting the same resource across groups is not supported",
        _ => return None,
    })
}

fn validate_keys(keys: &[Key], path: &str, sizes: &[usize], errors: &mut Vec<String>) {
    if keys.is_empty() {
        errors.push(required(path, "at least one keys is required"));
    }
    for (i, key) in keys.iter().enumerate() {
        if key.name.is_empty() {
            errors.push(required(&format!("{path}[{i}].name"), "name is a mandatory field for a key"));
        }
        let path = format!("{path}[{i}].secret");
        if key.secret.is_empty() {
            errors.push(required(&path, "secret is a mandatory field for a key"));
            continue;
        }
        match key.decoded() {
            Err(_) => errors.push(invalid(&path, "\"REDACTED\"", "secrets must be base64 encoded")),
            Ok(secret) if !sizes.contains(&secret.len()) => {
                let expected: Vec<String> = sizes.iter().map(usize::to_string).collect();
                let why = format!(
                    "secret is not of the expected length, got {}, expected one of [{}]",
                    secret.len(),
                    expected.join(" ")
                );
                errors.push(invalid(&path, "\"REDACTED\"", &why));
            }
            Ok(_) => {}
        }
    }
}

fn validate_kms(kms: &Kms, path: &str, names: &[&str], reload: bool, errors: &mut Vec<String>) {
    let name = &kms.name;
    let name_path = format!("{path}.name");
    if name.is_empty() {
        errors.push(required(&name_path, "name is a mandatory field for a provider"));
    }
    if kms.api_version != "v1" && name.contains(':') {
        let why = format!("invalid KMS provider name {name}, must not contain ':'");
        errors.push(invalid(&name_path, &format!("{name:?}"), &why));
    }
    if (reload || kms.api_version != "v1") && names.contains(&name.as_str()) {
        let why = format!("duplicate KMS provider name {name}, names must be unique");
        errors.push(invalid(&name_path, &format!("{name:?}"), &why));
    }
    if let Some(timeout) = &kms.bad_timeout {
        errors.push(invalid(&format!("{path}.timeout"), &format!("{timeout:?}"), "timeout should be a positive value"));
    }
    let endpoint = &kms.endpoint;
    let scheme = endpoint.split_once("://").map_or("", |(scheme, _)| scheme);
    if endpoint.is_empty() {
        errors.push(invalid(&format!("{path}.endpoint"), "\"\"", "endpoint is a mandatory field for a kms"));
    } else if scheme != "unix" {
        let why = format!("unsupported scheme {scheme:?} for KMS provider, only unix is supported");
        errors.push(invalid(&format!("{path}.endpoint"), &format!("{endpoint:?}"), &why));
    }
    match (kms.api_version.as_str(), kms.cache_size) {
        ("v1", Some(0)) => errors.push(invalid(
            &format!("{path}.cachesize"),
            "0",
            "cachesize should be a positive value, or negative to disable",
        )),
        ("v1", _) | (_, None) => {}
        (_, Some(size)) => {
            errors.push(invalid(&format!("{path}.cachesize"), &size.to_string(), "cachesize is not supported in v2"))
        }
    }
    if !matches!(kms.api_version.as_str(), "v1" | "v2") {
        let why = "unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported";
        errors.push(invalid(&format!("{path}.apiVersion"), &format!("{:?}", kms.api_version), why));
    }
}
