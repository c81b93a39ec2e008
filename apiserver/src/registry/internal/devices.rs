//! What claims ask of devices, as upstream's internal types have it.

use super::{Member, NONE, Shape, TEXT, ZERO};

const fn text(there: &'static str, here: &'static str) -> Member {
    Member(there, here, TEXT, Shape::Plain)
}

const fn pointer(there: &'static str, here: &'static str) -> Member {
    Member(there, here, NONE, Shape::Plain)
}

const COUNT: Member = Member("Count", "count", ZERO, Shape::Plain);
const SELECTORS: Member = Member(
    "Selectors",
    "selectors",
    NONE,
    Shape::List(&Shape::Struct(&[Member("CEL", "cel", NONE, Shape::Struct(&[text("Expression", "expression")]))])),
);
const TOLERATIONS: Member = Member(
    "Tolerations",
    "tolerations",
    NONE,
    Shape::List(&Shape::Struct(&[
        text("Key", "key"),
        text("Operator", "operator"),
        text("Value", "value"),
        text("Effect", "effect"),
        pointer("TolerationSeconds", "tolerationSeconds"),
    ])),
);
const CAPACITY: Member = Member("Capacity", "capacity", NONE, Shape::Struct(&[pointer("Requests", "requests")]));
const EXACTLY: Shape = Shape::Struct(&[
    text("DeviceClassName", "deviceClassName"),
    SELECTORS,
    text("AllocationMode", "allocationMode"),
    COUNT,
    pointer("AdminAccess", "adminAccess"),
    TOLERATIONS,
    CAPACITY,
]);
const ALTERNATIVE: Shape = Shape::Struct(&[
    text("Name", "name"),
    text("DeviceClassName", "deviceClassName"),
    SELECTORS,
    text("AllocationMode", "allocationMode"),
    COUNT,
    TOLERATIONS,
    CAPACITY,
]);
const REQUEST: Shape = Shape::Struct(&[
    text("Name", "name"),
    Member("Exactly", "exactly", NONE, EXACTLY),
    Member("FirstAvailable", "firstAvailable", NONE, Shape::List(&ALTERNATIVE)),
]);
const CONSTRAINT: Shape = Shape::Struct(&[
    pointer("Requests", "requests"),
    pointer("MatchAttribute", "matchAttribute"),
    pointer("DistinctAttribute", "distinctAttribute"),
]);
const CONFIGURATION: Shape = Shape::Struct(&[
    pointer("Requests", "requests"),
    Member("Opaque", "opaque", NONE, Shape::Struct(&[text("Driver", "driver"), pointer("Parameters", "parameters")])),
]);

/// Upstream: `resource.ResourceClaimSpec`.
pub static CLAIM: Shape = Shape::Struct(&[Member(
    "Devices",
    "devices",
    r#"{"Requests":null,"Constraints":null,"Config":null}"#,
    Shape::Struct(&[
        Member("Requests", "requests", NONE, Shape::List(&REQUEST)),
        Member("Constraints", "constraints", NONE, Shape::List(&CONSTRAINT)),
        Member("Config", "config", NONE, Shape::List(&CONFIGURATION)),
    ]),
)]);

/// The metadata of a template, whose fields show as those of the template's spec.
pub const METADATA: [&str; 14] = [
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
];
