//! Where a connecting subresource leads (upstream: `LogLocation`, `ExecLocation`, `ResourceLocation`).

use crate::front::{Front, Incoming};
use crate::registry::options::Query;
use coxswain_api::field::{Error, ErrorList, Path, View, go_quote};
use coxswain_api::{Status, Value};
use http::HeaderMap;
use http::header::{HeaderValue, LOCATION};
use std::net::IpAddr;
use std::sync::Arc;

const KUBELET_PORT: u16 = 10250;
const NOT_ALLOWED: &str = "address not allowed";
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

#[derive(Debug)]
pub struct Target {
    /// Name or address to dial.
    pub host_name: String,
    pub port: u16,
    /// As the Host header has it.
    pub host: String,
    pub is_tls: bool,
    pub path_and_query: String,
    /// The kubelet's own endpoints, reached with the server's own certificate.
    pub is_kubelet: bool,
    /// Asked with GET whatever the client's method was.
    pub is_get: bool,
    /// A proxied web server, to which the server must look like a proxy.
    pub is_proxy: bool,
    pub must_upgrade: bool,
    /// What redirects of the other side must begin with.
    pub location_prefix: String,
}

impl Target {
    /// Redirects within the proxied server stay within the proxy.
    pub fn rewrite_location(&self, headers: &mut HeaderMap) {
        let Some(location) = headers.get(LOCATION).and_then(|v| v.to_str().ok()) else { return };
        let own = format!("{}://{}", if self.is_tls { "https" } else { "http" }, self.host);
        let path = match location.strip_prefix(&own) {
            Some(path) => path,
            None if location.starts_with('/') => location,
            None => return,
        };
        if let Ok(value) = HeaderValue::from_str(&format!("{}{path}", self.location_prefix)) {
            headers.insert(LOCATION, value);
        }
    }
}

/// None where there is nothing to connect to yet, and nothing to refuse either.
pub async fn find(front: &Front, incoming: &Incoming) -> Result<Option<Target>, Status> {
    let info = incoming.info();
    let name = info.name.as_str();
    match (info.resource.as_str(), info.subresource.as_str()) {
        ("nodes", _) => {
            let (scheme, node, port) = split_name(name)?;
            let found = get(front, "nodes", "", &node).await?;
            let (host, kubelet_port) = kubelet_address(front, &node, &found)?;
            let own = port.is_empty() || port == kubelet_port.to_string();
            let port = if port.is_empty() { kubelet_port } else { parse_port(&port)? };
            if !own && !is_reachable_through(&host).await {
                return Err(Status::bad_request(NOT_ALLOWED));
            }
            let is_tls = if own { true } else { scheme == "https" };
            Ok(Some(proxy(incoming, host, port, is_tls, own)))
        }
        ("pods", "proxy") => {
            let (scheme, pod, port) = split_name(name)?;
            let found = get(front, "pods", &info.namespace, &pod).await?;
            let view = View::root(&found);
            let port = if port.is_empty() {
                let containers = view.child("spec").child("containers");
                let mut ports = containers.items().flat_map(|c| c.child("ports").items().collect::<Vec<_>>());
                let ports = ports.next().map(|p| p.child("containerPort").i64());
                ports.and_then(|p| u16::try_from(p).ok()).unwrap_or(80)
            } else {
                parse_port(&port)?
            };
            let address = view.child("status").child("podIP").str();
            if !is_proxyable(address) {
                return Err(Status::bad_request(NOT_ALLOWED));
            }
            Ok(Some(proxy(incoming, address.to_owned(), port, scheme == "https", false)))
        }
        ("services", _) => service(front, incoming).await.map(Some),
        (_, subresource) => {
            // What is asked is judged before it is known whether there is such a pod.
            let log = if subresource == "log" { log_options(&incoming.query, name)? } else { Vec::new() };
            let ports = if subresource == "portforward" { port_options(&incoming.query)? } else { Vec::new() };
            let pod = get(front, "pods", &info.namespace, name).await?;
            let node = View::root(&pod).child("spec").child("nodeName").str().to_owned();
            let query = &incoming.query;
            let path = match subresource {
                "portforward" => kubelet_path("portForward", &info.namespace, name, None, ports),
                "log" => {
                    let container = container(&pod, query.first("container").unwrap_or_default())?;
                    kubelet_path("containerLogs", &info.namespace, name, Some(&container), log)
                }
                _ => {
                    let container = container(&pod, query.first("container").unwrap_or_default())?;
                    let options = stream_options(query, subresource == "exec");
                    kubelet_path(subresource, &info.namespace, name, Some(&container), options)
                }
            };
            if node.is_empty() && subresource == "log" {
                return Ok(None);
            }
            if node.is_empty() {
                return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
            }
            let found = get(front, "nodes", "", &node).await?;
            let (host, port) = kubelet_address(front, &node, &found)?;
            Ok(Some(Target {
                host: authority(&host, port),
                host_name: host,
                port,
                is_tls: true,
                path_and_query: path,
                is_kubelet: true,
                is_get: subresource == "log",
                is_proxy: false,
                must_upgrade: subresource != "log",
                location_prefix: String::new(),
            }))
        }
    }
}

async fn get(front: &Front, resource: &str, namespace: &str, name: &str) -> Result<Arc<Value>, Status> {
    let missing = || Status::not_found("", resource, name);
    let store = front.store("", resource).ok_or_else(missing)?;
    Ok(store.get(namespace, name).await?.ok_or_else(missing)?.tree())
}

/// `[scheme:]name[:port]`.
fn split_name(text: &str) -> Result<(String, String, String), Status> {
    let parts: Vec<&str> = text.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme @ ("http" | "https" | ""), name, port] => (*scheme, *name, *port),
        _ => return Err(Status::bad_request(format!("invalid pod request {}", coxswain_api::field::go_quote(text)))),
    };
    Ok((scheme.to_owned(), name.to_owned(), port.to_owned()))
}

fn parse_port(text: &str) -> Result<u16, Status> {
    text.parse().map_err(|_| Status::bad_request(format!("invalid port {}", coxswain_api::field::go_quote(text))))
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn kubelet_address(front: &Front, name: &str, node: &Value) -> Result<(String, u16), Status> {
    let view = View::root(node);
    let status = view.child("status");
    let addresses: Vec<(&str, &str)> =
        status.child("addresses").items().map(|a| (a.child("type").str(), a.child("address").str())).collect();
    let preferred = &front.dialer.preferred_address_types;
    let found = preferred.iter().find_map(|kind| addresses.iter().find(|(k, a)| k == kind && !a.is_empty()));
    let Some((_, address)) = found else {
        let types: Vec<&str> = addresses.iter().map(|(k, _)| *k).collect();
        let why = format!("no preferred addresses found for node {name}; known addresses: {types:?}");
        return Err(Status::internal(why));
    };
    let port = status.child("daemonEndpoints").child("kubeletEndpoint").child("Port").i64();
    Ok(((*address).to_owned(), u16::try_from(port).ok().filter(|p| *p != 0).unwrap_or(KUBELET_PORT)))
}

fn proxy(incoming: &Incoming, host: String, port: u16, is_tls: bool, is_kubelet: bool) -> Target {
    let info = incoming.info();
    let path = incoming.uri.path();
    // What follows `/proxy`, as it was sent.
    let marker = format!("/{}/{}/proxy", info.resource, info.name);
    let (prefix, rest) = match path.find(&marker) {
        Some(at) => path.split_at(at + marker.len()),
        None => (path, ""),
    };
    let rest = if rest.is_empty() { "/" } else { rest };
    let path_and_query = match incoming.uri.query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    Target {
        host: authority(&host, port),
        host_name: host,
        port,
        is_tls,
        path_and_query,
        is_kubelet,
        is_get: false,
        is_proxy: true,
        must_upgrade: false,
        location_prefix: prefix.to_owned(),
    }
}

/// One of the ready endpoints of a service.
async fn service(front: &Front, incoming: &Incoming) -> Result<Target, Status> {
    use rand::seq::SliceRandom;
    let info = incoming.info();
    let (scheme, name, port) = split_name(&info.name)?;
    let found = get(front, "services", &info.namespace, &name).await?;
    let port_name = service_port_name(&found, &name, &port)?;
    let none = || {
        Status::unavailable(format!("no endpoints available for service {}", coxswain_api::field::go_quote(&info.name)))
    };
    let endpoints = get(front, "endpoints", &info.namespace, &name).await.map_err(|_| none())?;
    let mut ready = ready_endpoints(&endpoints, &port_name);
    ready.shuffle(&mut rand::rng());
    for endpoint in ready {
        if is_of_pod(front, &info.namespace, &endpoint).await {
            return Ok(proxy(incoming, endpoint.ip, endpoint.port, scheme == "https", false));
        }
    }
    Err(none())
}

/// One ready address of a service, with the pod that it is said to be of.
struct Endpoint {
    ip: String,
    port: u16,
    pod_namespace: String,
    pod: String,
}

fn ready_endpoints(endpoints: &Value, port_name: &str) -> Vec<Endpoint> {
    let mut ready = Vec::new();
    for subset in View::root(endpoints).child("subsets").items() {
        let Some(port) = subset.child("ports").items().find(|p| p.child("name").str() == port_name) else { continue };
        let Ok(port) = u16::try_from(port.child("port").i64()) else { continue };
        ready.extend(subset.child("addresses").items().map(|address| Endpoint {
            ip: address.child("ip").str().to_owned(),
            port,
            pod_namespace: address.child("targetRef").child("namespace").str().to_owned(),
            pod: address.child("targetRef").child("name").str().to_owned(),
        }));
    }
    ready
}

/// Whether an endpoint is the address of a pod of the namespace. Who may write endpoints may write anything into them, and the server must
/// not be led to places that only it can reach.
async fn is_of_pod(front: &Front, namespace: &str, endpoint: &Endpoint) -> bool {
    if endpoint.pod_namespace != namespace || endpoint.pod.is_empty() {
        return false;
    }
    let Ok(pod) = get(front, "pods", namespace, &endpoint.pod).await else { return false };
    View::root(&pod).child("status").child("podIPs").items().any(|found| found.child("ip").str() == endpoint.ip)
}

/// Whether a pod's address leads out of this machine and its link (upstream: `proxyutil.IsProxyableIP`).
fn is_proxyable(address: &str) -> bool {
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => {
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_link_local() || ip.is_broadcast())
        }
        Ok(IpAddr::V6(ip)) => match ip.to_ipv4_mapped() {
            Some(mapped) => is_proxyable(&mapped.to_string()),
            None => !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_unicast_link_local()),
        },
        Err(_) => false,
    }
}

/// The same of all addresses of a host (upstream: `proxyutil.IsProxyableHostname`).
async fn is_reachable_through(host: &str) -> bool {
    let Ok(found) = tokio::net::lookup_host((host, 0)).await else { return false };
    let mut addresses = found.map(|address| address.ip().to_string()).peekable();
    addresses.peek().is_some() && addresses.all(|address| is_proxyable(&address))
}

/// The name by which endpoints know the port that is meant: given as a name or a number, or the only one.
fn service_port_name(service: &Value, name: &str, port: &str) -> Result<String, Status> {
    let ports: Vec<View<'_>> = View::root(service).child("spec").child("ports").items().collect();
    if port.is_empty() {
        return Ok(match ports.as_slice() {
            [one] => one.child("name").str().to_owned(),
            _ => String::new(),
        });
    }
    let Ok(number) = port.parse::<i64>() else { return Ok(port.to_owned()) };
    match ports.iter().find(|p| p.child("port").i64() == number) {
        Some(found) => Ok(found.child("name").str().to_owned()),
        None => {
            let what = format!("no service port {number} found for service {}", coxswain_api::field::go_quote(name));
            Err(Status::unavailable(what))
        }
    }
}

/// The container that is meant: the one named, the default, or the only one.
fn container(pod: &Value, asked: &str) -> Result<String, Status> {
    let view = View::root(pod);
    let spec = view.child("spec");
    let name = view.child("metadata").child("name").str();
    let names =
        |field: &'static str| -> Vec<&str> { spec.child(field).items().map(|c| c.child("name").str()).collect() };
    let (main, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if !asked.is_empty() {
        if main.iter().chain(&init).chain(&ephemeral).any(|n| *n == asked) {
            return Ok(asked.to_owned());
        }
        return Err(Status::bad_request(format!("container {asked} is not valid for pod {name}")));
    }
    let default = view.child("metadata").child("annotations").child_named(DEFAULT_CONTAINER).str();
    if main.contains(&default) {
        return Ok(default.to_owned());
    }
    if let [one] = main.as_slice() {
        return Ok((*one).to_owned());
    }
    let mut message = format!("a container name must be specified for pod {name}, choose one of: [{}]", main.join(" "));
    if !init.is_empty() {
        message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
    }
    if !ephemeral.is_empty() {
        message.push_str(&format!(" or one of the ephemeral containers: [{}]", ephemeral.join(" ")));
    }
    Err(Status::bad_request(message))
}

fn kubelet_path(
    endpoint: &str,
    namespace: &str,
    pod: &str,
    container: Option<&str>,
    options: Vec<(&str, String)>,
) -> String {
    let mut path = format!("/{endpoint}/{namespace}/{pod}");
    if let Some(container) = container {
        path.push('/');
        path.push_str(container);
    }
    for (i, (name, value)) in options.iter().enumerate() {
        path.push(if i == 0 { '?' } else { '&' });
        path.push_str(name);
        path.push('=');
        path.push_str(&query_escaped(value));
    }
    path
}

/// As Go's `url.QueryEscape`.
fn query_escaped(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            b' ' => out.push('+'),
            other => {
                let _ = write!(out, "%{other:02X}");
            }
        }
    }
    out
}

fn flag(query: &Query, name: &str) -> bool {
    query.first(name).is_some_and(|v| !(v == "0" || v.eq_ignore_ascii_case("false")))
}

/// `PodPortForwardOptions`: numbers, of which several may stand in one value.
fn port_options(query: &Query) -> Result<Vec<(&'static str, String)>, Status> {
    let ports = query.all("ports");
    for port in ports.iter().flat_map(|p| p.split(',')) {
        port.parse::<u16>().map_err(|error| {
            let quoted = coxswain_api::field::go_quote(port);
            let why = match error.kind() {
                std::num::IntErrorKind::PosOverflow => "value out of range",
                _ => "invalid syntax",
            };
            Status::bad_request(format!("cannot convert to []int32: strconv.ParseUint: parsing {quoted}: {why}"))
        })?;
    }
    Ok(if ports.is_empty() { Vec::new() } else { vec![("port", ports.join(","))] })
}

fn stream_options(query: &Query, exec: bool) -> Vec<(&'static str, String)> {
    let mut options = Vec::new();
    for (asked, told) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if flag(query, asked) {
            options.push((told, "1".to_owned()));
        }
    }
    if exec {
        options.extend(query.all("command").into_iter().map(|c| ("command", c.to_owned())));
    }
    options
}

/// `PodLogOptions`, passed on as the kubelet takes them (upstream: `ValidatePodLogOptions`).
fn log_options(query: &Query, pod: &str) -> Result<Vec<(&'static str, String)>, Status> {
    let mut options = Vec::new();
    for name in ["follow", "previous", "timestamps"] {
        if flag(query, name) {
            options.push((name, "true".to_owned()));
        }
    }
    let given = |name| query.first(name).filter(|t: &&str| !t.is_empty());
    let mut errors = ErrorList::new();
    let field = Path::new;
    for (name, least, why) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        let Some(text) = given(name) else { continue };
        let quoted = go_quote(text);
        let number = text.parse::<i64>();
        let number =
            number.map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {quoted}: invalid syntax")))?;
        options.push((name, text.to_owned()));
        if number < least && !(name == "sinceSeconds" && given("sinceTime").is_some()) {
            errors.push(Error::invalid(&field(name), number, why));
        }
    }
    if given("sinceSeconds").is_some() && given("sinceTime").is_some() {
        let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        errors.push(Error::forbidden(&field(""), why));
    }
    if given("stream").is_some() {
        errors.push(Error::forbidden(&field("stream"), "may not be specified"));
    }
    if let Some(time) = given("sinceTime") {
        options.push(("sinceTime", time.to_owned()));
    }
    if errors.is_empty() { Ok(options) } else { Err(Status::invalid("", "PodLogOptions", pod, &errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_beyond_this_machine_and_its_link_are_proxied_to() {
        for address in ["10.1.2.3", "192.168.0.1", "8.8.8.8", "fd00::1", "2001:db8::1"] {
            assert!(is_proxyable(address), "{address}");
        }
        for address in [
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "fe80::1",
            "::ffff:127.0.0.1",
            "",
        ] {
            assert!(!is_proxyable(address), "{address}");
        }
    }
}
