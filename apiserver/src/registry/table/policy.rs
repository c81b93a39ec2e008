//! Who may do what, and what is let in: roles, certificates, budgets, flow control, admission.

use super::cells::{NONE, UNSET, age, human_duration, int_or_string, name, text_or};
use super::{AGE, NAME, Printer, number, text, wide};
use coxswain_api::Value;
use coxswain_api::field::View;
use jiff::Timestamp;

const PARAM_KIND: super::Col =
    text("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy");
const POLICY_NAME: super::Col =
    text("PolicyName", "PolicyName indicates the policy definition which the policy binding binded to");
const PARAM_REF: super::Col =
    text("ParamRef", "ParamRef indicates the param resource which sets the configuration param");
const WEBHOOKS: super::Col =
    number("Webhooks", "Webhooks indicates the number of webhooks registered in this configuration");

#[rustfmt::skip]
pub(super) static PRINTERS: &[Printer] = &[
    Printer { group: "admissionregistration.k8s.io", kind: "MutatingAdmissionPolicy", cells: |o, now| policy(&o, "mutations", now), columns: &[
        NAME, number("Mutations", "Mutation indicates the number of mutations rules defined in this configuration"), PARAM_KIND, AGE,
    ] },
    Printer { group: "admissionregistration.k8s.io", kind: "MutatingAdmissionPolicyBinding", cells: policy_binding, columns: &[NAME, POLICY_NAME, PARAM_REF, AGE] },
    Printer { group: "admissionregistration.k8s.io", kind: "MutatingWebhookConfiguration", cells: webhooks, columns: &[NAME, WEBHOOKS, AGE] },
    Printer { group: "admissionregistration.k8s.io", kind: "ValidatingAdmissionPolicy", cells: |o, now| policy(&o, "validations", now), columns: &[
        NAME, number("Validations", "Validations indicates the number of validation rules defined in this configuration"), PARAM_KIND, AGE,
    ] },
    Printer { group: "admissionregistration.k8s.io", kind: "ValidatingAdmissionPolicyBinding", cells: policy_binding, columns: &[NAME, POLICY_NAME, PARAM_REF, AGE] },
    Printer { group: "admissionregistration.k8s.io", kind: "ValidatingWebhookConfiguration", cells: webhooks, columns: &[NAME, WEBHOOKS, AGE] },
    Printer { group: "certificates.k8s.io", kind: "CertificateSigningRequest", cells: signing_request, columns: &[
        NAME, AGE, text("SignerName", SIGNER_NAME), text("Requestor", "Base64-encoded PKCS#10 CSR data"),
        text("RequestedDuration", "@certificates.v1.CertificateSigningRequestSpec.expirationSeconds"),
        text("Condition", "Conditions applied to the request, such as approval or denial."),
    ] },
    Printer { group: "flowcontrol.apiserver.k8s.io", kind: "FlowSchema", cells: flow_schema, columns: &[
        NAME, text("PriorityLevel", "@flowcontrol.v1.PriorityLevelConfigurationReference.name"),
        number("MatchingPrecedence", "@flowcontrol.v1.FlowSchemaSpec.matchingPrecedence"),
        text("DistinguisherMethod", "@flowcontrol.v1.FlowSchemaSpec.distinguisherMethod"), AGE,
        text("MissingPL", "references a broken or non-existent PriorityLevelConfiguration"),
    ] },
    Printer { group: "flowcontrol.apiserver.k8s.io", kind: "PriorityLevelConfiguration", cells: priority_level, columns: &[
        NAME, text("Type", "@flowcontrol.v1.PriorityLevelConfigurationSpec.type"),
        text("NominalConcurrencyShares", "@flowcontrol.v1.LimitedPriorityLevelConfiguration.nominalConcurrencyShares"),
        text("Queues", "@flowcontrol.v1.QueuingConfiguration.queues"),
        text("HandSize", "@flowcontrol.v1.QueuingConfiguration.handSize"),
        text("QueueLengthLimit", "@flowcontrol.v1.QueuingConfiguration.queueLengthLimit"), AGE,
    ] },
    Printer { group: "policy", kind: "PodDisruptionBudget", cells: disruption_budget, columns: &[
        NAME, text("Min Available", "The minimum number of pods that must be available."),
        text("Max Unavailable", "The maximum number of pods that may be unavailable."),
        number("Allowed Disruptions", "Calculated number of pods that may be disrupted at this time."), AGE,
    ] },
    Printer { group: "rbac.authorization.k8s.io", kind: "ClusterRoleBinding", cells: role_binding, columns: &[
        NAME, text("Role", "RoleRef can only reference a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the Authorizer must return an error."),
        AGE, wide("Users", "Users in the clusterRoleBinding"), wide("Groups", "Groups in the clusterRoleBinding"),
        wide("ServiceAccounts", "ServiceAccounts in the clusterRoleBinding"),
    ] },
    Printer { group: "rbac.authorization.k8s.io", kind: "RoleBinding", cells: role_binding, columns: &[
        NAME, text("Role", "RoleRef can reference a Role in the current namespace or a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the Authorizer must return an error."),
        AGE, wide("Users", "Users in the roleBinding"), wide("Groups", "Groups in the roleBinding"),
        wide("ServiceAccounts", "ServiceAccounts in the roleBinding"),
    ] },
];

/// The description of the oldest version of the field, which upstream still prints.
const SIGNER_NAME: &str = "Requested signer for the request. It is a qualified name in the form: `scope-hostname.io/name`. If empty, it will be defaulted:\n 1. If it's a kubelet client certificate, it is assigned\n    \"kubernetes.io/kube-apiserver-client-kubelet\".\n 2. If it's a kubelet serving certificate, it is assigned\n    \"kubernetes.io/kubelet-serving\".\n 3. Otherwise, it is assigned \"kubernetes.io/legacy-unknown\".\nDistribution of trust for signers happens out of band. You can select on this field using `spec.signerName`.";

fn webhooks(o: View<'_>, now: Timestamp) -> Vec<Value> {
    vec![name(&o), o.child("webhooks").len().into(), age(&o, now)]
}

fn policy(o: &View<'_>, rules: &'static str, now: Timestamp) -> Vec<Value> {
    let spec = o.child("spec");
    let param = spec.child("paramKind");
    let kind = if param.exists() {
        format!("{}/{}", param.child("apiVersion").str(), param.child("kind").str())
    } else {
        UNSET.to_owned()
    };
    vec![name(o), spec.child(rules).len().into(), kind.into(), age(o, now)]
}

fn policy_binding(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let spec = o.child("spec");
    let param = spec.child("paramRef");
    let text = match (param.exists(), param.child("namespace").str(), param.child("name").str()) {
        (false, ..) => UNSET.to_owned(),
        (true, "", "") => "*".to_owned(),
        (true, "", name) => name.to_owned(),
        (true, namespace, "") => format!("{namespace}/*"),
        (true, namespace, name) => format!("{namespace}/{name}"),
    };
    vec![name(&o), spec.child("policyName").str().into(), text.into(), age(&o, now)]
}

fn signing_request(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (o.child("spec"), o.child("status"));
    let has = |kind: &str| status.child("conditions").items().any(|c| c.child("type").str() == kind);
    let mut state = match () {
        () if has("Denied") => "Denied",
        () if has("Approved") => "Approved",
        () => "Pending",
    }
    .to_owned();
    if has("Failed") {
        state.push_str(",Failed");
    }
    if !status.child("certificate").is_empty() {
        state.push_str(",Issued");
    }
    let duration = spec.child("expirationSeconds").opt_i64().map_or_else(|| NONE.to_owned(), human_duration);
    vec![
        name(&o),
        age(&o, now),
        text_or(&spec.child("signerName"), NONE),
        spec.child("username").str().into(),
        duration.into(),
        state.into(),
    ]
}

fn flow_schema(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let spec = o.child("spec");
    let dangling = o.child("status").child("conditions").items().find(|c| c.child("type").str() == "Dangling");
    vec![
        name(&o),
        spec.child("priorityLevelConfiguration").child("name").str().into(),
        spec.child("matchingPrecedence").i64().into(),
        text_or(&spec.child("distinguisherMethod").child("type"), NONE),
        age(&o, now),
        dangling.map_or("?", |c| c.child("status").str()).into(),
    ]
}

fn priority_level(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let spec = o.child("spec");
    let limited = spec.child("limited");
    let queuing = limited.child("limitResponse").child("queuing");
    let exempt = spec.child("exempt");
    let shares = if limited.exists() { &limited } else { &exempt };
    let shares = shares.child("nominalConcurrencyShares").opt_i64().map_or_else(|| NONE.into(), Value::from);
    let of_queues = |field: &'static str| -> Value {
        if queuing.exists() { queuing.child(field).i64().into() } else { NONE.into() }
    };
    vec![
        name(&o),
        spec.child("type").str().into(),
        shares,
        of_queues("queues"),
        of_queues("handSize"),
        of_queues("queueLengthLimit"),
        age(&o, now),
    ]
}

fn disruption_budget(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let spec = o.child("spec");
    vec![
        name(&o),
        int_or_string(&spec.child("minAvailable"), "N/A"),
        int_or_string(&spec.child("maxUnavailable"), "N/A"),
        o.child("status").child("disruptionsAllowed").i64().into(),
        age(&o, now),
    ]
}

fn role_binding(o: View<'_>, now: Timestamp) -> Vec<Value> {
    let role = o.child("roleRef");
    let of_kind = |kind: &str| -> Value {
        let subjects = o.child("subjects");
        let own = subjects.items().filter(|s| s.child("kind").str() == kind);
        let names: Vec<String> = own
            .map(|s| match kind {
                "ServiceAccount" => format!("{}/{}", s.child("namespace").str(), s.child("name").str()),
                _ => s.child("name").str().to_owned(),
            })
            .collect();
        names.join(", ").into()
    };
    vec![
        name(&o),
        format!("{}/{}", role.child("kind").str(), role.child("name").str()).into(),
        age(&o, now),
        of_kind("User"),
        of_kind("Group"),
        of_kind("ServiceAccount"),
    ]
}
