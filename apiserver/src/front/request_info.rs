//! What a request asks, read off its method and path (upstream: `RequestInfoFactory.NewRequestInfo`).

use crate::registry::options::Query;
use crate::request::RequestInfo;
use coxswain_api::selector::field_selector::FieldSelector;
use http::Method;

/// The subresources of a namespace; any other third part is a resource within the namespace.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

/// `Err`: the path is one of a special verb that names nothing.
pub fn parse(method: &Method, path: &str, query: &Query) -> Result<RequestInfo, String> {
    let mut info =
        RequestInfo { path: path.to_owned(), verb: method.as_str().to_lowercase(), ..RequestInfo::default() };
    let trimmed = path.trim_matches('/');
    let all: Vec<&str> = if trimmed.is_empty() { Vec::new() } else { trimmed.split('/').collect() };
    let mut parts = all.as_slice();
    if parts.len() < 3 || !matches!(parts[0], "api" | "apis") {
        return Ok(info);
    }
    info.prefix = parts[0].to_owned();
    parts = &parts[1..];
    if info.prefix == "apis" {
        // The group's own version document has three parts and is no resource.
        if parts.len() < 3 {
            return Ok(info);
        }
        info.group = parts[0].to_owned();
        parts = &parts[1..];
    }
    info.is_resource = true;
    info.version = parts[0].to_owned();
    parts = &parts[1..];

    let special = matches!(parts[0], "proxy" | "watch");
    if special {
        if parts.len() < 2 {
            return Err(format!("unable to determine kind and namespace from url: {path}"));
        }
        info.verb = parts[0].to_owned();
        parts = &parts[1..];
    } else {
        info.verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        }
        .to_owned();
    }

    if parts[0] == "namespaces" && parts.len() > 1 {
        info.namespace = parts[1].to_owned();
        if parts.len() > 2 && !NAMESPACE_SUBRESOURCES.contains(&parts[2]) {
            parts = &parts[2..];
        }
    }
    if parts.len() >= 3 && info.verb != "proxy" {
        info.subresource = parts[2].to_owned();
        info.rest = parts[3..].iter().map(|p| (*p).to_owned()).collect();
    }
    if parts.len() >= 2 {
        info.name = parts[1].to_owned();
    }
    info.resource = parts[0].to_owned();

    if info.name.is_empty() && info.verb == "get" {
        let watch = query.first("watch").is_some_and(|w| !(w == "0" || w.eq_ignore_ascii_case("false")));
        info.verb = if watch { "watch" } else { "list" }.to_owned();
        // A list of one name is authorized as that name.
        let selector = query.first("fieldSelector").and_then(|text| FieldSelector::parse(text).ok());
        let name = selector.as_ref().and_then(|s| s.exact_match("metadata.name")).unwrap_or_default();
        if !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '%']) {
            info.name = name.to_owned();
        }
    }
    if info.name.is_empty() && info.verb == "delete" {
        info.verb = "deletecollection".to_owned();
    }
    if matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
        info.field_selector = query.first("fieldSelector").map(str::to_owned);
        info.label_selector = query.first("labelSelector").map(str::to_owned);
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: Method, path: &str) -> String {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let i = parse(&method, path, &Query::parse(Some(query))).unwrap();
        format!(
            "{} {}/{} ns={} {} {} {} {}",
            i.verb,
            i.group,
            i.version,
            i.namespace,
            i.resource,
            i.name,
            i.subresource,
            i.rest.join(",")
        )
    }

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        assert_eq!(of(Method::GET, "/api/v1/namespaces"), "list /v1 ns= namespaces   ");
        assert_eq!(of(Method::GET, "/api/v1/namespaces/a"), "get /v1 ns=a namespaces a  ");
        assert_eq!(of(Method::PUT, "/api/v1/namespaces/a/finalize"), "update /v1 ns=a namespaces a finalize ");
        assert_eq!(
            of(Method::GET, "/apis/apps/v1/namespaces/a/deployments?watch=1"),
            "watch apps/v1 ns=a deployments   "
        );
        assert_eq!(of(Method::GET, "/api/v1/namespaces/a/pods/p/proxy/x/y"), "get /v1 ns=a pods p proxy x,y");
        assert_eq!(of(Method::GET, "/api/v1/watch/namespaces/a/pods/p"), "watch /v1 ns=a pods p  ");
        assert_eq!(of(Method::DELETE, "/api/v1/nodes"), "deletecollection /v1 ns= nodes   ");
        assert_eq!(of(Method::GET, "/api/v1/pods?fieldSelector=metadata.name%3Dx"), "list /v1 ns= pods x  ");
        assert_eq!(of(Method::GET, "/apis/apps/v1"), "get / ns=    ");
    }
}
