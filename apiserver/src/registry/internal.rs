//! Values as upstream's internal types show them in error messages: with Go's names, in Go's order, and with every field,
//! also those that are not given.

pub mod devices;
pub mod unified;
pub mod volumes;

use coxswain_api::Value;
use coxswain_api::field::{BadValue, View};
use std::fmt::Write;

/// How a value is shown.
pub enum Shape {
    /// As it is in the API: scalars, maps, and types that upstream has only one form of.
    Plain,
    List(&'static Shape),
    /// As it is in the API, in this order, without what is not given.
    Given(&'static [&'static str]),
    Struct(&'static [Member]),
}

/// A field: its name there and here, what stands for it if it is absent, and its shape.
pub struct Member(pub &'static str, pub &'static str, pub &'static str, pub Shape);

/// A value in upstream's internal form.
pub struct Dump(pub String);

impl BadValue for Dump {
    fn text(&self) -> String {
        self.0.clone()
    }
}

/// The value in its internal form; `null` if there is none.
pub fn dump(view: &View<'_>, shape: &Shape) -> Dump {
    let mut out = String::new();
    write_value(view.value(), shape, "null", &mut out);
    Dump(out)
}

/// The value of a member by itself.
pub fn dump_member(view: &View<'_>, Member(_, _, absent, shape): &Member) -> Dump {
    let mut out = String::new();
    write_value(view.value(), shape, absent, &mut out);
    Dump(out)
}

fn write_value(value: Option<&Value>, shape: &Shape, absent: &str, out: &mut String) {
    let Some(value) = value.filter(|v| !v.is_null()) else { return out.push_str(absent) };
    match shape {
        Shape::Plain => {
            let _ = write!(out, "{value}");
        }
        Shape::List(shape) => {
            out.push('[');
            for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_value(Some(item), shape, "null", out);
            }
            out.push(']');
        }
        Shape::Given(names) => {
            let given: Vec<String> = names
                .iter()
                .filter_map(|name| Some(format!("\"{name}\":{}", value.get(name).filter(|v| !v.is_null())?)))
                .collect();
            let _ = write!(out, "{{{}}}", given.join(","));
        }
        Shape::Struct(members) => {
            out.push('{');
            for (i, Member(there, here, absent, shape)) in members.iter().enumerate() {
                let comma = if i == 0 { "" } else { "," };
                let _ = write!(out, "{comma}\"{there}\":");
                write_value(value.get(here), shape, absent, out);
            }
            out.push('}');
        }
    }
}

const TEXT: &str = "\"\"";
const NONE: &str = "null";
const ZERO: &str = "0";

/// A text by itself, which is empty if it is absent.
pub const TEXT_MEMBER: Member = Member("", "", TEXT, Shape::Plain);
pub const PLAIN_MEMBER: Member = Member("", "", NONE, Shape::Plain);

pub const OBJECT_REFERENCE: Shape = Shape::Struct(&[
    Member("Kind", "kind", TEXT, Shape::Plain),
    Member("Namespace", "namespace", TEXT, Shape::Plain),
    Member("Name", "name", TEXT, Shape::Plain),
    Member("UID", "uid", TEXT, Shape::Plain),
    Member("APIVersion", "apiVersion", TEXT, Shape::Plain),
    Member("ResourceVersion", "resourceVersion", TEXT, Shape::Plain),
    Member("FieldPath", "fieldPath", TEXT, Shape::Plain),
]);
pub const EVENT_SOURCE: Shape =
    Shape::Struct(&[Member("Component", "component", TEXT, Shape::Plain), Member("Host", "host", TEXT, Shape::Plain)]);
pub static BUDGET: Shape = Shape::Struct(&[
    Member("MinAvailable", "minAvailable", NONE, Shape::Plain),
    Member("Selector", "selector", NONE, Shape::Given(&["matchLabels", "matchExpressions"])),
    Member("MaxUnavailable", "maxUnavailable", NONE, Shape::Plain),
    Member("UnhealthyPodEvictionPolicy", "unhealthyPodEvictionPolicy", NONE, Shape::Plain),
]);
pub static CERTIFICATE_CONDITIONS: Shape = Shape::List(&Shape::Struct(&[
    Member("Type", "type", TEXT, Shape::Plain),
    Member("Status", "status", TEXT, Shape::Plain),
    Member("Reason", "reason", TEXT, Shape::Plain),
    Member("Message", "message", TEXT, Shape::Plain),
    Member("LastUpdateTime", "lastUpdateTime", NONE, Shape::Plain),
    Member("LastTransitionTime", "lastTransitionTime", NONE, Shape::Plain),
]));
pub static POD_CERTIFICATE_SPEC: Shape = Shape::Struct(&[
    Member("SignerName", "signerName", TEXT, Shape::Plain),
    Member("PodName", "podName", TEXT, Shape::Plain),
    Member("PodUID", "podUID", TEXT, Shape::Plain),
    Member("ServiceAccountName", "serviceAccountName", TEXT, Shape::Plain),
    Member("ServiceAccountUID", "serviceAccountUID", TEXT, Shape::Plain),
    Member("NodeName", "nodeName", TEXT, Shape::Plain),
    Member("NodeUID", "nodeUID", TEXT, Shape::Plain),
    Member("MaxExpirationSeconds", "maxExpirationSeconds", NONE, Shape::Plain),
    Member("PKIXPublicKey", "pkixPublicKey", NONE, Shape::Plain),
    Member("ProofOfPossession", "proofOfPossession", NONE, Shape::Plain),
    Member("StubPKCS10Request", "stubPKCS10Request", NONE, Shape::Plain),
    Member("UnverifiedUserAnnotations", "unverifiedUserAnnotations", NONE, Shape::Plain),
]);
pub static STORAGE_MIGRATION_SPEC: Shape = Shape::Struct(&[Member(
    "Resource",
    "resource",
    r#"{"group":"","resource":""}"#,
    Shape::Struct(&[Member("group", "group", TEXT, Shape::Plain), Member("resource", "resource", TEXT, Shape::Plain)]),
)]);
pub static POOL_STATUS_REQUEST_STATUS: Shape = Shape::Struct(&[
    Member("PoolCount", "poolCount", NONE, Shape::Plain),
    Member(
        "Pools",
        "pools",
        NONE,
        Shape::List(&Shape::Struct(&[
            Member("Driver", "driver", TEXT, Shape::Plain),
            Member("PoolName", "poolName", TEXT, Shape::Plain),
            Member("Generation", "generation", ZERO, Shape::Plain),
            Member("ResourceSliceCount", "resourceSliceCount", NONE, Shape::Plain),
            Member("TotalDevices", "totalDevices", NONE, Shape::Plain),
            Member("AllocatedDevices", "allocatedDevices", NONE, Shape::Plain),
            Member("AvailableDevices", "availableDevices", NONE, Shape::Plain),
            Member("UnavailableDevices", "unavailableDevices", NONE, Shape::Plain),
            Member("NodeName", "nodeName", NONE, Shape::Plain),
            Member("ValidationError", "validationError", NONE, Shape::Plain),
        ])),
    ),
    Member(
        "Conditions",
        "conditions",
        NONE,
        Shape::List(&Shape::Given(&[
            "type",
            "status",
            "observedGeneration",
            "lastTransitionTime",
            "reason",
            "message",
        ])),
    ),
]);
pub static PARENT_REFERENCE: Shape = Shape::Struct(&[
    Member("Group", "group", TEXT, Shape::Plain),
    Member("Resource", "resource", TEXT, Shape::Plain),
    Member("Namespace", "namespace", TEXT, Shape::Plain),
    Member("Name", "name", TEXT, Shape::Plain),
]);

const NODE_REQUIREMENTS: Shape = Shape::List(&Shape::Struct(&[
    Member("Key", "key", TEXT, Shape::Plain),
    Member("Operator", "operator", TEXT, Shape::Plain),
    Member("Values", "values", NONE, Shape::Plain),
]));
pub static NODE_SELECTOR_TERM: Shape = Shape::Struct(&[
    Member("MatchExpressions", "matchExpressions", NONE, NODE_REQUIREMENTS),
    Member("MatchFields", "matchFields", NONE, NODE_REQUIREMENTS),
]);
pub static NODE_SELECTOR_TERMS: Shape = Shape::List(&NODE_SELECTOR_TERM);
pub static VOLUME_NODE_AFFINITY: Shape = Shape::Struct(&[Member(
    "Required",
    "required",
    NONE,
    Shape::Struct(&[Member("NodeSelectorTerms", "nodeSelectorTerms", NONE, Shape::List(&NODE_SELECTOR_TERM))]),
)]);
pub static NODE_ADDRESS: Shape =
    Shape::Struct(&[Member("Type", "type", TEXT, Shape::Plain), Member("Address", "address", TEXT, Shape::Plain)]);
/// Without how much the driver can take, which upstream leaves out of what it compares.
pub static CSI_NODE_DRIVER: Shape = Shape::Struct(&[
    Member("Name", "name", TEXT, Shape::Plain),
    Member("NodeID", "nodeID", TEXT, Shape::Plain),
    Member("TopologyKeys", "topologyKeys", NONE, Shape::Plain),
    Member("Allocatable", "", NONE, Shape::Plain),
]);
pub static SCOPE_SELECTOR: Shape = Shape::Struct(&[Member(
    "MatchExpressions",
    "matchExpressions",
    NONE,
    Shape::List(&Shape::Struct(&[
        Member("ScopeName", "scopeName", TEXT, Shape::Plain),
        Member("Operator", "operator", TEXT, Shape::Plain),
        Member("Values", "values", NONE, Shape::Plain),
    ])),
)]);

const NAMED: Shape = Shape::Struct(&[Member("Name", "name", TEXT, Shape::Plain)]);
pub static FLOW_SCHEMA_SPEC: Shape = Shape::Struct(&[
    Member("PriorityLevelConfiguration", "priorityLevelConfiguration", NONE, NAMED),
    Member("MatchingPrecedence", "matchingPrecedence", ZERO, Shape::Plain),
    Member(
        "DistinguisherMethod",
        "distinguisherMethod",
        NONE,
        Shape::Struct(&[Member("Type", "type", TEXT, Shape::Plain)]),
    ),
    Member(
        "Rules",
        "rules",
        NONE,
        Shape::List(&Shape::Struct(&[
            Member("Subjects", "subjects", NONE, FLOW_SUBJECTS),
            Member("ResourceRules", "resourceRules", NONE, FLOW_RESOURCES),
            Member("NonResourceRules", "nonResourceRules", NONE, FLOW_PATHS),
        ])),
    ),
]);
const FLOW_SUBJECTS: Shape = Shape::List(&Shape::Struct(&[
    Member("Kind", "kind", TEXT, Shape::Plain),
    Member("User", "user", NONE, NAMED),
    Member("Group", "group", NONE, NAMED),
    Member(
        "ServiceAccount",
        "serviceAccount",
        NONE,
        Shape::Struct(&[
            Member("Namespace", "namespace", TEXT, Shape::Plain),
            Member("Name", "name", TEXT, Shape::Plain),
        ]),
    ),
]));
const FLOW_RESOURCES: Shape = Shape::List(&Shape::Struct(&[
    Member("Verbs", "verbs", NONE, Shape::Plain),
    Member("APIGroups", "apiGroups", NONE, Shape::Plain),
    Member("Resources", "resources", NONE, Shape::Plain),
    Member("ClusterScope", "clusterScope", "false", Shape::Plain),
    Member("Namespaces", "namespaces", NONE, Shape::Plain),
]));
const FLOW_PATHS: Shape = Shape::List(&Shape::Struct(&[
    Member("Verbs", "verbs", NONE, Shape::Plain),
    Member("NonResourceURLs", "nonResourceURLs", NONE, Shape::Plain),
]));

const LEVEL_TYPE: Member = Member("Type", "type", TEXT, Shape::Plain);
const LEVEL_LIMITED: Member = Member(
    "Limited",
    "limited",
    NONE,
    Shape::Struct(&[
        Member("NominalConcurrencyShares", "nominalConcurrencyShares", ZERO, Shape::Plain),
        Member(
            "LimitResponse",
            "limitResponse",
            r#"{"Type":"","Queuing":null}"#,
            Shape::Struct(&[
                LEVEL_TYPE,
                Member(
                    "Queuing",
                    "queuing",
                    NONE,
                    Shape::Struct(&[
                        Member("Queues", "queues", ZERO, Shape::Plain),
                        Member("HandSize", "handSize", ZERO, Shape::Plain),
                        Member("QueueLengthLimit", "queueLengthLimit", ZERO, Shape::Plain),
                    ]),
                ),
            ]),
        ),
        Member("LendablePercent", "lendablePercent", NONE, Shape::Plain),
        Member("BorrowingLimitPercent", "borrowingLimitPercent", NONE, Shape::Plain),
    ]),
);
pub static PRIORITY_LEVEL_SPEC: Shape = Shape::Struct(&[
    LEVEL_TYPE,
    LEVEL_LIMITED,
    Member(
        "Exempt",
        "exempt",
        NONE,
        Shape::Struct(&[
            Member("NominalConcurrencyShares", "nominalConcurrencyShares", NONE, Shape::Plain),
            Member("LendablePercent", "lendablePercent", NONE, Shape::Plain),
        ]),
    ),
]);
/// What of the exempt level is fixed.
pub static EXEMPT_LEVEL_SPEC: Shape = Shape::Struct(&[LEVEL_TYPE, LEVEL_LIMITED]);

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::json;

    #[test]
    fn absent_fields_are_shown_and_order_is_that_of_the_type() {
        let term = json!({"matchExpressions": [{"operator": "Exists", "key": "a"}]});
        let shown = dump(&View::root(&term), &NODE_SELECTOR_TERM).0;
        assert_eq!(shown, r#"{"MatchExpressions":[{"Key":"a","Operator":"Exists","Values":null}],"MatchFields":null}"#);
        assert_eq!(dump(&View::root(&json!(null)).child("x"), &NODE_SELECTOR_TERM).0, "null");
    }
}
