//! Addresses of stores, as the commands take them:
//!
//! - `embedded:///DIR`, or the path of the directory
//! - `etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…][/PREFIX]`, `etcds://…` with TLS; `?cafile=`, `certfile=`, `keyfile=`;
//!   the prefix is `registry` if none is given
//! - `postgres://[USER[:PASSWORD]@]HOST[:PORT][,…]/DATABASE?…` as every Postgres client has it, with `sslmode=` and the
//!   like; `schema=` names the schema of the tables, which is `coxswain` if none is given

use crate::{Embedded, Error, Etcd, Postgres, Result, Storage, embedded, etcd, postgres};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Embedded(PathBuf),
    Etcd { endpoints: Vec<String>, root: String, files: [Option<PathBuf>; 3] },
    Postgres { url: String, schema: Option<String> },
}

impl Address {
    pub fn parse(text: &str) -> Result<Address> {
        let refused = |what: &str| Err(unavailable(format!("{}: {what}", without_password(text))));
        let Some((scheme, rest)) = text.split_once("://") else {
            return match text.strip_prefix("embedded:").unwrap_or(text) {
                "" => refused("an empty address"),
                path => Ok(Address::Embedded(absolute(path))),
            };
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let pairs: Vec<(&str, &str)> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let value = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        match scheme {
            "embedded" if rest.starts_with('/') => Ok(Address::Embedded(rest.into())),
            "embedded" => refused("write embedded:///DIR, with the whole path"),
            "etcd" | "etcds" => {
                let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let prefix = prefix.trim_matches('/');
                let (user, hosts) = hosts.rsplit_once('@').map_or(("", hosts), |(user, hosts)| (user, hosts));
                let scheme = if scheme == "etcd" { "http" } else { "https" };
                let at = if user.is_empty() { String::new() } else { format!("{user}@") };
                Ok(Address::Etcd {
                    endpoints: hosts.split(',').map(|host| format!("{scheme}://{at}{host}")).collect(),
                    root: format!("/{}/", if prefix.is_empty() { "registry" } else { prefix }),
                    files: ["cafile", "certfile", "keyfile"].map(|name| value(name).map(PathBuf::from)),
                })
            }
            "postgres" | "postgresql" => {
                let kept: Vec<&str> = query.split('&').filter(|p| !p.is_empty() && !p.starts_with("schema=")).collect();
                let query = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
                let url = format!("{scheme}://{rest}{query}");
                Ok(Address::Postgres { url, schema: value("schema").map(str::to_owned) })
            }
            _ => refused("the address of a store begins with embedded://, etcd://, etcds:// or postgres://"),
        }
    }

    /// Opens the store. One that is only used for a while need not keep house: it is given no time to keep history by.
    pub async fn open(&self, keep_history: Duration) -> Result<Arc<dyn Storage>> {
        Ok(match self {
            Address::Embedded(directory) => {
                let options = embedded::Options { keep_history, ..embedded::Options::default() };
                let directory = directory.clone();
                let opened = tokio::task::spawn_blocking(move || Embedded::open(&directory, options)).await;
                Arc::new(opened.map_err(|e| unavailable(e.to_string()))??)
            }
            Address::Etcd { endpoints, root, files: [ca_file, cert_file, key_file] } => {
                let (ca_file, cert_file, key_file) = (ca_file.clone(), cert_file.clone(), key_file.clone());
                let access = etcd::Access { ca_file, cert_file, key_file, user: None };
                let options = etcd::Options { keep_history, access, root: root.clone(), ..etcd::Options::default() };
                Arc::new(Etcd::open(endpoints, options).await?)
            }
            Address::Postgres { url, schema } => {
                let mut options = postgres::Options { keep_history, ..postgres::Options::default() };
                options.schema = schema.clone().unwrap_or(options.schema);
                Arc::new(Postgres::open(url, options).await?)
            }
        })
    }

    /// Opens a store that must be there already.
    pub async fn open_existing(&self, keep_history: Duration) -> Result<Arc<dyn Storage>> {
        if let Address::Embedded(directory) = self
            && !directory.join("engine").is_dir()
        {
            return Err(unavailable(format!("{} is not a data directory", directory.display())));
        }
        self.open(keep_history).await
    }
}

fn absolute(path: &str) -> PathBuf {
    std::path::absolute(Path::new(path)).unwrap_or_else(|_| path.into())
}

fn unavailable(what: String) -> Error {
    Error::Unavailable { operation: "open", source: what.into() }
}

/// The address as it may be shown: without what is between the user's name and the host.
pub fn without_password(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let shown = match authority.rsplit_once('@') {
        Some((user, hosts)) => format!("{}@{hosts}", user.split(':').next().unwrap_or_default()),
        None => authority.to_owned(),
    };
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    format!("{scheme}://{shown}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_say_where_a_store_is() {
        let directory = Address::Embedded("/var/lib/coxswain".into());
        assert_eq!(Address::parse("embedded:///var/lib/coxswain").unwrap(), directory);
        assert_eq!(Address::parse("/var/lib/coxswain").unwrap(), directory);
        let etcd = Address::parse("etcds://u:p@one:2379,two:2379/other?cafile=/ca.pem").unwrap();
        let endpoints = vec!["https://u:p@one:2379".to_owned(), "https://u:p@two:2379".to_owned()];
        let files = [Some("/ca.pem".into()), None, None];
        assert_eq!(etcd, Address::Etcd { endpoints, root: "/other/".into(), files });
        let postgres = Address::parse("postgres://u:p@h/db?sslmode=require&schema=two").unwrap();
        let url = "postgres://u:p@h/db?sslmode=require".to_owned();
        assert_eq!(postgres, Address::Postgres { url, schema: Some("two".into()) });
        assert!(Address::parse("mysql://h/db").is_err());
        assert_eq!(without_password("postgres://u:p@h:1/db?password=x"), "postgres://u@h:1/db");
    }
}
