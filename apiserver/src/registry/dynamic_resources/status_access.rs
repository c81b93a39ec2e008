//! Who may change what of the status of a claim (upstream: `AuthorizedForBinding`, `AuthorizedForDeviceStatus`,
//! `AuthorizedForAdminStatus`).
//!
//! The right to write the status is not enough: what is allocated, and for whom, takes the right to `resourceclaims/binding`;
//! what is said of a driver's devices takes the right to `resourceclaims/driver` with the driver's name.

use super::admin_access::{is_marked, not_marked};
use crate::registry::checks;
use crate::registry::pipeline::{Call, Pipeline};
use coxswain_api::field::{Error, ErrorList, Path, View};
use coxswain_api::{Status, Value, names};
use std::collections::{BTreeMap, BTreeSet};

const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const ASSOCIATED_NODE: &str = "associated-node:";
const ARBITRARY_NODE: &str = "arbitrary-node:";

/// What has to be asked before a status may be written.
enum Question {
    /// Whether devices may be used with the rights of an administrator; the index of the result that is.
    AdminAccess(usize),
    Binding,
    /// Whether one of the verbs is allowed for the devices of a driver.
    Driver {
        name: String,
        verbs: Vec<String>,
    },
}

pub(super) async fn check(pipeline: &Pipeline, call: &Call, object: &Value, old: &Value) -> Result<(), Status> {
    let mut errors = ErrorList::new();
    for question in questions(call, object, old) {
        match question {
            Question::AdminAccess(index) => {
                if !is_marked(pipeline, call.namespace()).await? {
                    let results = Path::new("status").child("allocation").child("devices").child("results");
                    errors.push(not_marked(&results.index(index).child("adminAccess")));
                }
            }
            Question::Binding => {
                let verb = call.ctx.info.verb.as_str();
                if let Err(why) = allowed(pipeline, call, verb, "binding", "", "").await {
                    let why = format!(
                        "changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", \
                         verb=\"{verb}\" permission: {why}"
                    );
                    errors.push(Error::forbidden(&Path::new("status").child("allocation"), why));
                }
            }
            Question::Driver { name, verbs } => {
                if let Some(why) = driver_refusal(pipeline, call, &verbs, &name).await {
                    let verbs = verbs.join(" ");
                    let why = format!(
                        "changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[{verbs}]\" \
                         permission: {why}"
                    );
                    errors.push(Error::forbidden(&Path::new("status").child("devices"), why));
                }
            }
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(call.invalid(object, &errors)) }
}

fn questions(call: &Call, object: &Value, old: &Value) -> Vec<Question> {
    let [status, before] = [object, old].map(|claim| View::root(claim).child("status"));
    let mut questions = Vec::new();
    if admin_result(&before).is_none() {
        questions.extend(admin_result(&status).map(Question::AdminAccess));
    }
    let same = |field: &'static str| checks::same(status.child(field).value(), before.child(field).value());
    if !same("allocation") || !same("reservedFor") {
        questions.push(Question::Binding);
    }
    // Without an allocation nothing stays to be said of devices.
    if status.child("allocation").exists() {
        let verbs = driver_verbs(call, &status);
        let drivers = changed_drivers(&status, &before).into_iter();
        questions.extend(drivers.map(|name| Question::Driver { name: name.to_owned(), verbs: verbs.clone() }));
    }
    questions
}

/// The first device that was allocated with the rights of an administrator.
fn admin_result(status: &View<'_>) -> Option<usize> {
    let results = status.child("allocation").child("devices").child("results");
    results.items().position(|result| result.child("adminAccess").bool())
}

/// Why none of the verbs is allowed: what was said of the first.
async fn driver_refusal(pipeline: &Pipeline, call: &Call, verbs: &[String], driver: &str) -> Option<String> {
    let mut refusal = None;
    for verb in verbs {
        match allowed(pipeline, call, verb, "driver", call.namespace(), driver).await {
            Ok(()) => return None,
            Err(why) => drop(refusal.get_or_insert(why)),
        }
    }
    refusal
}

/// Asks for the right to a subresource that no path leads to. `Err` is the refusal.
async fn allowed(
    pipeline: &Pipeline,
    call: &Call,
    verb: &str,
    subresource: &str,
    namespace: &str,
    name: &str,
) -> Result<(), String> {
    let mut info = (*call.ctx.info).clone();
    info.verb = verb.into();
    info.subresource = subresource.into();
    info.namespace = namespace.into();
    info.name = name.into();
    pipeline.authorization.check(&call.ctx.user, &info).await.map_err(|status| status.message)
}

/// A driver on the node of the allocation may have rights for its own node only.
fn driver_verbs(call: &Call, status: &View<'_>) -> Vec<String> {
    let user = &call.ctx.user;
    let is_service_account =
        user.name.strip_prefix("system:serviceaccount:").is_some_and(|rest| rest.split(':').count() == 2);
    let own_node = match user.extra.get(NODE_NAME).map(Vec::as_slice) {
        Some([node]) if is_service_account && names::dns1123_subdomain(node, false).is_empty() => Some(node.as_str()),
        _ => None,
    };
    let verb = &call.ctx.info.verb;
    let mut verbs = vec![format!("{ARBITRARY_NODE}{verb}")];
    if own_node.is_some() && own_node == allocated_node(status) {
        verbs.insert(0, format!("{ASSOCIATED_NODE}{verb}"));
    }
    verbs
}

/// The node of an allocation that is for one node.
fn allocated_node<'a>(status: &View<'a>) -> Option<&'a str> {
    let terms = status.child("allocation").child("nodeSelector").child("nodeSelectorTerms");
    let term = terms.items().next().filter(|term| terms.len() == 1 && term.child("matchExpressions").is_empty())?;
    let fields = term.child("matchFields");
    let field = fields.items().next().filter(|_| fields.len() == 1)?;
    let values = field.child("values");
    let by_name = field.child("key").str() == "metadata.name" && field.child("operator").str() == "In";
    values.items().next().filter(|_| by_name && values.len() == 1)?.opt_str()
}

/// The drivers of devices of which something else is said than before.
fn changed_drivers<'a>(status: &View<'a>, before: &View<'a>) -> BTreeSet<&'a str> {
    let devices = |of: &View<'a>| -> BTreeMap<[&'a str; 4], Option<&'a Value>> {
        let key = |device: &View<'a>| ["driver", "pool", "device", "shareID"].map(|field| device.child(field).str());
        of.child("devices").items().map(|device| (key(&device), device.value())).collect()
    };
    let (now, before) = (devices(status), devices(before));
    let changed = now.iter().filter(|(key, device)| before.get(*key) != Some(device)).map(|(key, _)| key);
    let gone = before.keys().filter(|key| !now.contains_key(*key));
    changed.chain(gone).map(|[driver, ..]| *driver).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    #[test]
    fn drivers_are_asked_for_what_changes_of_theirs() {
        let device =
            |driver: &str, data: i64| json!({"driver": driver, "pool": "p", "device": "d", "data": {"n": data}});
        let status = |devices: Vec<Value>| json!({ "devices": devices });
        let before = status(vec![device("a", 1), device("b", 1), device("c", 1)]);
        let now = status(vec![device("a", 1), device("b", 2), device("d", 1)]);
        let changed = changed_drivers(&View::root(&now), &View::root(&before));
        assert_eq!(changed.into_iter().collect::<Vec<_>>(), ["b", "c", "d"]);
        let on = |values: Value| {
            let field = json!({"key": "metadata.name", "operator": "In", "values": values});
            json!({"allocation": {"nodeSelector": {"nodeSelectorTerms": [{"matchFields": [field]}]}}})
        };
        assert_eq!(allocated_node(&View::root(&on(json!(["n"])))), Some("n"));
        assert_eq!(allocated_node(&View::root(&on(json!(["n", "m"])))), None);
    }
}
