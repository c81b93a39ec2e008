//! Names and name resolution of a pod: host name, `/etc/hosts`, resolver settings (upstream: `kubelet/network/dns` and
//! `kubelet_pods.go`). Texts in, texts out.

use crate::cri::v1::DnsConfig;
use crate::pod::{self, PodExt};
use k8s_openapi::api::core::v1::{HostAlias, Pod};
use std::path::Path;

const HOSTNAME_LENGTH_MAX: usize = 63;
const FQDN_LENGTH_MAX: usize = 64;
/// Limits of resolver settings (upstream: `validation.MaxDNSNameservers` and its neighbours).
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_CHARS_MAX: usize = 2048;

/// The short host name and, where the pod has a subdomain, the domain below which it is known.
pub fn hostname_and_domain(pod: &Pod, cluster_domain: &str) -> Result<(String, String), String> {
    let spec = pod.spec();
    if let Some(name) = spec.hostname_override.as_deref().filter(|n| !n.is_empty()) {
        return Ok((name.to_string(), String::new()));
    }
    let hostname = match spec.hostname.as_deref().filter(|h| !h.is_empty()) {
        Some(hostname) => hostname.to_string(),
        None => {
            let name = pod.name();
            let cut = if name.len() > HOSTNAME_LENGTH_MAX {
                name[..HOSTNAME_LENGTH_MAX].trim_end_matches(['-', '.'])
            } else {
                name
            };
            cut.to_string()
        }
    };
    let domain = match spec.subdomain.as_deref().filter(|s| !s.is_empty()) {
        Some(subdomain) => format!("{subdomain}.{}.svc.{cluster_domain}", pod.namespace()),
        None => String::new(),
    };
    Ok((hostname, domain))
}

/// What the sandbox's kernel host name is: the short one, or with `setHostnameAsFQDN` the full one.
pub fn sandbox_hostname(pod: &Pod, cluster_domain: &str) -> Result<String, String> {
    let (hostname, domain) = hostname_and_domain(pod, cluster_domain)?;
    if pod.spec().set_hostname_as_fqdn == Some(true) && !domain.is_empty() {
        let full = format!("{hostname}.{domain}");
        if full.len() > FQDN_LENGTH_MAX {
            return Err(format!(
                "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long ({FQDN_LENGTH_MAX} characters is the max, {} characters requested)",
                full.len()
            ));
        }
        return Ok(full);
    }
    Ok(hostname)
}

pub fn hosts_file(pod: &Pod, ips: &[String], cluster_domain: &str, host_file: &str) -> String {
    let mut text = if pod::is_host_network(pod) {
        format!("# Kubernetes-managed hosts file (host network).\n{host_file}")
    } else {
        let mut text = String::from(
            "# Kubernetes-managed hosts file.\n\
             127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n",
        );
        if let Ok((hostname, domain)) = hostname_and_domain(pod, cluster_domain) {
            for ip in ips {
                if domain.is_empty() {
                    text.push_str(&format!("{ip}\t{hostname}\n"));
                } else {
                    text.push_str(&format!("{ip}\t{hostname}.{domain}\t{hostname}\n"));
                }
            }
        }
        text
    };
    text.push_str(&aliases(pod.spec().host_aliases.as_deref().unwrap_or_default()));
    text
}

fn aliases(list: &[HostAlias]) -> String {
    if list.is_empty() {
        return String::new();
    }
    let lines: Vec<String> = list
        .iter()
        .map(|alias| {
            format!("{}\t{}\n", alias.ip, alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t"))
        })
        .collect();
    format!("\n# Entries added by HostAliases.\n{}", lines.concat())
}

/// The node's own resolver settings.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_string)),
            // The last line of each of these wins.
            Some("search") => {
                config.searches =
                    words.map(|w| if w == "." { w.into() } else { w.trim_end_matches('.').into() }).collect()
            }
            Some("options") => config.options = words.map(str::to_string).collect(),
            _ => {}
        }
    }
    config
}

pub fn read_resolv_conf(path: &str) -> DnsConfig {
    if path.is_empty() {
        return DnsConfig::default();
    }
    std::fs::read_to_string(Path::new(path)).map(|text| parse_resolv_conf(&text)).unwrap_or_default()
}

/// A pod's resolver settings. The flag says that the policy could not be followed because the node knows no cluster DNS.
pub fn dns_config(pod: &Pod, host: &DnsConfig, cluster_dns: &[String], cluster_domain: &str) -> (DnsConfig, bool) {
    let spec = pod.spec();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let wants_cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !pod::is_host_network(pod),
        _ => false,
    };
    let mut missing = false;
    let mut config = if policy == "None" {
        DnsConfig::default()
    } else if wants_cluster && !cluster_dns.is_empty() {
        let mut searches = Vec::new();
        if !cluster_domain.is_empty() {
            searches = vec![
                format!("{}.svc.{cluster_domain}", pod.namespace()),
                format!("svc.{cluster_domain}"),
                cluster_domain.to_string(),
            ];
        }
        for search in &host.searches {
            if !searches.contains(search) {
                searches.push(search.clone());
            }
        }
        DnsConfig { servers: cluster_dns.to_vec(), searches, options: vec!["ndots:5".into()] }
    } else {
        missing = wants_cluster;
        let mut config = host.clone();
        if config.servers.is_empty() && !pod::is_host_network(pod) {
            // A host without name servers resolves on itself, which a pod cannot reach; upstream gives it the loopback all the same.
            config.servers = vec!["127.0.0.1".into()];
            config.searches = vec![".".into()];
        }
        config
    };
    if let Some(extra) = &spec.dns_config {
        for server in extra.nameservers.iter().flatten() {
            if !config.servers.contains(server) {
                config.servers.push(server.clone());
            }
        }
        for search in extra.searches.iter().flatten() {
            if !config.searches.contains(search) {
                config.searches.push(search.clone());
            }
        }
        for option in extra.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            let text = match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_string(),
            };
            config.options.retain(|o| o.split(':').next() != Some(name));
            config.options.push(text);
        }
    }
    config.servers.truncate(NAMESERVERS_MAX);
    config.searches.truncate(SEARCHES_MAX);
    let mut length = 0;
    config.searches.retain(|search| {
        length += search.len() + 1;
        length <= SEARCH_CHARS_MAX + 1
    });
    (config, missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec})).unwrap()
    }

    #[test]
    fn dns_policies() {
        let host = parse_resolv_conf("nameserver 8.8.8.8\nsearch corp. lan\noptions rotate\n");
        let check = |spec: serde_json::Value| {
            let (c, missing) = dns_config(&pod(spec), &host, &["10.96.0.10".into()], "cluster.local");
            format!("{:?} {:?} {:?} {missing}", c.servers, c.searches, c.options)
        };
        assert_eq!(
            check(serde_json::json!({})),
            r#"["10.96.0.10"] ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp", "lan"] ["ndots:5"] false"#
        );
        assert_eq!(check(serde_json::json!({"hostNetwork": true})), r#"["8.8.8.8"] ["corp", "lan"] ["rotate"] false"#);
        assert_eq!(
            check(
                serde_json::json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "2"}]}})
            ),
            r#"["1.1.1.1"] [] ["ndots:2"] false"#
        );
        assert!(dns_config(&pod(serde_json::json!({})), &host, &[], "").1);
    }

    #[test]
    fn hosts_files_name_the_pod_and_its_aliases() {
        let pod = pod(
            serde_json::json!({"hostname": "h", "subdomain": "s", "hostAliases": [{"ip": "1.1.1.1", "hostnames": ["a", "b"]}]}),
        );
        let text = hosts_file(&pod, &["10.0.0.1".into()], "cluster.local", "");
        assert!(text.ends_with("fe00::2\tip6-allrouters\n10.0.0.1\th.s.ns.svc.cluster.local\th\n\n# Entries added by HostAliases.\n1.1.1.1\ta\tb\n"), "{text}");
    }
}
