//! The kubeconfig file (`clientcmd/api/v1`): what its current context points at.

use std::path::{Path, PathBuf};

use base64::Engine;
use serde::Deserialize;

use super::Error;

/// A server, who to be there, and the namespace for requests that name none.
#[derive(Clone, Debug, Default)]
pub struct Target {
    pub cluster: Cluster,
    pub identity: Identity,
    pub namespace: Option<String>,
}

/// Where the server is and how it proves itself.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// `http://` or `https://`, optionally with a path below which the API lives.
    pub server: String,
    /// PEM bundle; the system's authorities are not consulted.
    pub certificate_authority: Option<Vec<u8>>,
    pub insecure_skip_tls_verify: bool,
    /// The name to verify the server's certificate against, when it is not that of the address.
    pub tls_server_name: Option<String>,
}

/// Who to be. A token file is read anew as it is rotated.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// PEM certificate chain and key.
    pub client_certificate: Option<(Vec<u8>, Vec<u8>)>,
    pub token: Option<String>,
    pub token_file: Option<PathBuf>,
    pub basic: Option<(String, String)>,
    pub impersonate: Option<String>,
    pub impersonate_groups: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct File {
    current_context: String,
    clusters: Vec<Named<FileCluster>>,
    users: Vec<Named<FileUser>>,
    contexts: Vec<Named<FileContext>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "cluster", alias = "user", alias = "context")]
    value: T,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct FileCluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct FileUser {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(alias = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "as")]
    impersonate: Option<String>,
    as_groups: Vec<String>,
    exec: Option<serde_json::Value>,
    auth_provider: Option<serde_json::Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct FileContext {
    cluster: String,
    user: String,
    namespace: Option<String>,
}

/// Follows the current context (or the only one) to its cluster and user. Relative paths start at `base`.
pub(super) fn resolve(file: File, base: Option<&Path>) -> Result<Target, Error> {
    let invalid = |text: String| Error::Invalid(text);
    let context = match (file.current_context.as_str(), file.contexts.as_slice()) {
        ("", [only]) => &only.value,
        ("", _) => return Err(invalid("no current-context is set".to_owned())),
        (name, contexts) => contexts
            .iter()
            .find(|context| context.name == name)
            .map(|context| &context.value)
            .ok_or_else(|| invalid(format!("context {name:?} does not exist")))?,
    };
    let cluster = file
        .clusters
        .iter()
        .find(|cluster| cluster.name == context.cluster)
        .map(|cluster| &cluster.value)
        .ok_or_else(|| invalid(format!("cluster {:?} does not exist", context.cluster)))?;
    let anonymous = FileUser::default();
    let user = match file.users.iter().find(|user| user.name == context.user) {
        Some(user) => &user.value,
        None if context.user.is_empty() => &anonymous,
        None => return Err(invalid(format!("user {:?} does not exist", context.user))),
    };
    if user.exec.is_some() || user.auth_provider.is_some() {
        return Err(invalid("credential plugins (exec, auth-provider) are not supported".to_owned()));
    }
    let at = |path: &Path| base.map_or_else(|| path.to_owned(), |base| base.join(path));
    let bytes = |data: &Option<String>, path: &Option<PathBuf>| -> Result<Option<Vec<u8>>, Error> {
        if let Some(data) = data.as_ref().filter(|data| !data.is_empty()) {
            let decoded = base64::engine::general_purpose::STANDARD
                .decode(data.trim())
                .map_err(|error| invalid(format!("invalid base64: {error}")))?;
            return Ok(Some(decoded));
        }
        match path.as_ref().filter(|path| !path.as_os_str().is_empty()) {
            Some(path) => {
                let path = at(path);
                std::fs::read(&path).map(Some).map_err(|source| Error::Read { path, source })
            }
            None => Ok(None),
        }
    };
    let certificate = bytes(&user.client_certificate_data, &user.client_certificate)?;
    let key = bytes(&user.client_key_data, &user.client_key)?;
    Ok(Target {
        cluster: Cluster {
            server: cluster.server.clone(),
            certificate_authority: bytes(&cluster.certificate_authority_data, &cluster.certificate_authority)?,
            insecure_skip_tls_verify: cluster.insecure_skip_tls_verify,
            tls_server_name: cluster.tls_server_name.clone(),
        },
        identity: Identity {
            client_certificate: certificate.zip(key),
            token: user.token.clone().filter(|token| !token.is_empty()),
            token_file: user.token_file.as_deref().map(at),
            basic: user.username.clone().zip(user.password.clone()),
            impersonate: user.impersonate.clone(),
            impersonate_groups: user.as_groups.clone(),
        },
        namespace: context.namespace.clone().filter(|namespace| !namespace.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_context_selects_cluster_user_and_namespace() {
        let file: File = serde_yaml_ng::from_str(
            "current-context: b\n\
             clusters: [{name: c1, cluster: {server: 'https://one'}}, {name: c2, cluster: {server: 'https://two'}}]\n\
             users: [{name: u, user: {token: t, as-groups: [g]}}]\n\
             contexts: [{name: a, context: {cluster: c1, user: u}}, {name: b, context: {cluster: c2, user: u, namespace: n}}]",
        )
        .unwrap();
        let target = resolve(file, None).unwrap();
        assert_eq!(target.cluster.server, "https://two");
        assert_eq!(target.identity.token.as_deref(), Some("t"));
        assert_eq!(target.namespace.as_deref(), Some("n"));
        assert_eq!(target.identity.impersonate_groups, ["g"]);
    }

    #[test]
    fn a_context_that_does_not_exist_is_an_error() {
        let file: File = serde_yaml_ng::from_str("current-context: b").unwrap();
        assert!(resolve(file, None).is_err());
    }
}
