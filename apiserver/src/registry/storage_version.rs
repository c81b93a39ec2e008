//! StorageVersion: in which versions the servers of a cluster store a resource (upstream:
//! `pkg/registry/apiserverinternal/storageversion`, `pkg/apis/apiserverinternal/validation`).

use super::metadata;
use super::resource::{MetadataChecks, Resource};
use crate::request::Context;
use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::{Value, names};

pub struct StorageVersions;

impl Resource for StorageVersions {
    fn reset_for_status(&self, object: &mut Value, old: &Value) {
        metadata::reset_for_status(object, old);
    }

    fn validate_update(&self, _ctx: &Context, object: &Value, _old: &Value, subresource: &str) -> ErrorList {
        // The spec is empty: there is nothing else to check.
        if subresource == "status" { check_status(&View::root(object).child("status")) } else { ErrorList::new() }
    }

    /// The group and the resource, between which is the last dot.
    fn validate_name(&self, name: &str, _prefix: bool) -> Vec<String> {
        let Some((group, resource)) = name.rsplit_once('.') else {
            return vec!["name must be in the form of <group>.<resource>".into()];
        };
        let group = names::dns1123_subdomain(group, false).into_iter().map(|why| format!("the group segment {why}"));
        let resource =
            names::dns1035_label(resource, false).into_iter().map(|why| format!("the resource segment {why}"));
        group.chain(resource).collect()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn repeats_metadata_checks(&self, _subresource: &str) -> MetadataChecks {
        MetadataChecks { update: false, whole: false, whole_first: false }
    }

    fn reset_fields(&self, subresource: &str) -> Option<&'static [&'static str]> {
        Some(if subresource.is_empty() { &["status"] } else { &["metadata", "spec"] })
    }
}

fn check_status(status: &View<'_>) -> ErrorList {
    let mut errors = ErrorList::new();
    let versions = status.child("storageVersions");
    let mut servers: Vec<&str> = Vec::new();
    for version in versions.items() {
        let server = version.child("apiServerID");
        if servers.contains(&server.str()) {
            errors.push(Error::duplicate(server.path(), server.str()));
        }
        servers.push(server.str());
        check_server(&version, &mut errors);
    }
    check_common(status, &mut errors);
    check_conditions(status, &mut errors);
    errors
}

fn check_server(version: &View<'_>, errors: &mut ErrorList) {
    let server = version.child("apiServerID");
    super::checks::dns_subdomain(&server, errors);
    let api_version = |view: &View<'_>, errors: &mut ErrorList| {
        let wrong = wrong_api_version(view.str());
        if !wrong.is_empty() {
            errors.push(Error::invalid(view.path(), view.str(), wrong.join(",")));
        }
    };
    let (encoding, decodable) = (version.child("encodingVersion"), version.child("decodableVersions"));
    api_version(&encoding, errors);
    decodable.items().for_each(|item| api_version(&item, errors));
    let known: Vec<&str> = decodable.items().map(|item| item.str()).collect();
    if !known.contains(&encoding.str()) {
        let why = format!("decodableVersions must include encodingVersion {}", encoding.str());
        errors.push(Error::invalid(decodable.path(), &decodable, why));
    }
    for served in version.child("servedVersions").items() {
        api_version(&served, errors);
        if !known.contains(&served.str()) {
            let (name, all) = (served.str(), known.join(" "));
            let why = format!("individual served version : {name} must be included in decodableVersions : [{all}]");
            errors.push(Error::invalid(served.path(), name, why));
        }
    }
}

/// What all servers encode in is named, if there is such a version.
fn check_common(status: &View<'_>, errors: &mut ErrorList) {
    let mut encodings = status.child("storageVersions").items().map(|v| v.child("encodingVersion").str());
    let first = encodings.next();
    let common = first.filter(|first| encodings.all(|other| other == *first));
    let named = status.child("commonEncodingVersion");
    let why = match (common, named.opt_str()) {
        (None, Some(_)) => {
            "should be nil if servers do not agree on the same encoding version, or if there is no server \
                            reporting the supported versions yet"
                .to_owned()
        }
        (Some(common), None) => format!("the common encoding version is {common}"),
        (Some(common), Some(named)) if common != named => format!("the actual common encoding version is {common}"),
        _ => return,
    };
    errors.push(Error::invalid(named.path(), &named, why));
}

/// Upstream leaves the name of the list out of the paths.
fn check_conditions(status: &View<'_>, errors: &mut ErrorList) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, condition) in status.child("conditions").items().enumerate() {
        let at = View::new(condition.value(), status.path().index(i));
        let (kind, value) = (at.child("type"), at.child("status"));
        if let Some(first) = seen.iter().rposition(|other| *other == kind.str()) {
            let why = format!("the type of the condition is not unique, it also appears in conditions[{first}]");
            errors.push(Error::invalid(kind.path(), kind.str(), why));
        }
        seen.push(kind.str());
        super::checks::qualified_name(&kind, errors);
        super::checks::qualified_name(&value, errors);
        super::checks::required(&at.child("reason"), errors);
        super::checks::required(&at.child("message"), errors);
    }
}

/// What is wrong with `version` or `group/version`.
fn wrong_api_version(text: &str) -> Vec<String> {
    const EMPTY: &str = "must be non-empty";
    let (group, version) = match text.split('/').collect::<Vec<_>>().as_slice() {
        [version] => (None, *version),
        [group, version] => (Some(*group), *version),
        _ => {
            let label = names::regex_error(
                "a DNS-1035 label, which must consist of lower case alphanumeric characters or '-', start with an \
                 alphabetic character, and end with an alphanumeric character",
                "[a-z]([-a-z0-9]*[a-z0-9])?",
                &["my-name", "abc-123"],
            );
            let domain = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyVersion')";
            return vec![format!("an apiVersion is {label} {domain}")];
        }
    };
    let part = |name: &str, text: &str, wrong: Vec<String>| -> Vec<String> {
        let wrong = if text.is_empty() { vec![EMPTY.to_owned()] } else { wrong };
        wrong.into_iter().map(|why| format!("{name} part: {why}")).collect()
    };
    let mut wrong = group.map(|g| part("group", g, names::dns1123_subdomain(g, false))).unwrap_or_default();
    wrong.extend(part("version", version, names::dns1035_label(version, false)));
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    #[test]
    fn servers_that_agree_name_what_they_agree_on() {
        let errors_of = |status: Value| -> Vec<String> {
            check_status(&View::new(Some(&status), coxswain_api::field::Path::new("status")))
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        let server = |id: &str, version: &str| json!({"apiServerID": id, "encodingVersion": version, "decodableVersions": [version]});
        let agreed = [server("a", "apps/v1"), server("b", "apps/v1")];
        assert_eq!(errors_of(json!({"storageVersions": agreed, "commonEncodingVersion": "apps/v1"})), [""; 0]);
        assert_eq!(
            errors_of(json!({"storageVersions": agreed})),
            ["status.commonEncodingVersion: Invalid value: null: the common encoding version is apps/v1"]
        );
        let wrong = json!({"apiServerID": "a", "encodingVersion": "/V", "servedVersions": ["v1"],
            "decodableVersions": ["/V"]});
        let fields: Vec<String> = check_status(&View::new(
            Some(&json!({"storageVersions": [wrong], "commonEncodingVersion": "/V", "conditions": [{"type": "A", "status": "B"}]})),
            coxswain_api::field::Path::new("status"),
        ))
        .into_iter()
        .map(|e| e.field)
        .collect();
        assert_eq!(
            fields,
            [
                "status.storageVersions[0].encodingVersion",
                "status.storageVersions[0].decodableVersions[0]",
                "status.storageVersions[0].servedVersions[0]",
                "status[0].reason",
                "status[0].message",
            ]
        );
    }
}
