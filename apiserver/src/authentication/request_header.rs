//! The front proxy: a trusted proxy says in headers who is asking (upstream: `authentication/request/headerrequest`).

use super::x509::{self, ClientCertificates};
use super::{ConfigError, Peer, Refused, read};
use crate::request::User;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `--requestheader-client-ca-file`
    pub client_ca_file: PathBuf,
    /// `--requestheader-allowed-names`: common names of proxies; any if empty.
    pub allowed_names: Vec<String>,
    /// `--requestheader-username-headers`
    pub username_headers: Vec<String>,
    /// `--requestheader-uid-headers`
    pub uid_headers: Vec<String>,
    /// `--requestheader-group-headers`
    pub group_headers: Vec<String>,
    /// `--requestheader-extra-headers-prefix`
    pub extra_header_prefixes: Vec<String>,
}

pub struct RequestHeader {
    proxies: ClientCertificates,
    config: Config,
}

impl RequestHeader {
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let proxies = ClientCertificates::new(&read(&config.client_ca_file)?)?;
        Ok(Self { proxies, config: config.clone() })
    }

    /// Headers of anyone but a proxy of the right authority and name are ignored or refused, never believed.
    pub fn authenticate(&self, request: &http::request::Parts, peer: &Peer) -> Result<Option<User>, Refused> {
        let judge = || match self.proxies.verify(peer)? {
            Some(leaf) => Ok(Some(Arc::from(x509::common_name(leaf)?))),
            None => Ok(None),
        };
        let Some(name) = peer.proxy.get_or(0, judge)? else { return Ok(None) };
        if !self.config.allowed_names.is_empty() && !self.config.allowed_names.iter().any(|n| **n == *name) {
            return Err(Refused(format!("x509: subject with cn={name} is not in the allowed list")));
        }
        Ok(self.user(&request.headers))
    }

    fn user(&self, headers: &http::HeaderMap) -> Option<User> {
        let first = |names: &[String]| {
            names.iter().find_map(|n| text(headers.get(n.trim())?)).filter(|v| !v.is_empty()).unwrap_or_default()
        };
        let name = first(&self.config.username_headers);
        if name.is_empty() {
            return None;
        }
        let mut user = User { name, uid: first(&self.config.uid_headers), ..User::default() };
        for header in &self.config.group_headers {
            user.groups.extend(headers.get_all(header.trim()).iter().filter_map(text));
        }
        for prefix in &self.config.extra_header_prefixes {
            let prefix = prefix.to_ascii_lowercase();
            for (header, value) in headers {
                if let Some(key) = header.as_str().strip_prefix(prefix.as_str()) {
                    user.extra.entry(super::impersonation::unescape(key)).or_default().extend(text(value));
                }
            }
        }
        Some(user)
    }
}

fn text(value: &http::HeaderValue) -> Option<String> {
    std::str::from_utf8(value.as_bytes()).ok().map(str::to_owned)
}
