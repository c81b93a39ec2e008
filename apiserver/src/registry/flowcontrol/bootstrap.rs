//! The flow schemas and priority levels that every cluster has (upstream: `pkg/apis/flowcontrol/bootstrap`).

use coxswain_api::{Value, json};

/// Name, shares, what may be lent, and queues, hand size and queue length; none rejects what finds no seat.
type Level = (&'static str, i64, i64, Option<(i64, i64, i64)>);

#[rustfmt::skip]
const LIMITED: [Level; 7] = [
    ("catch-all", 5, 0, None),
    ("global-default", 20, 50, Some((128, 6, 50))),
    ("leader-election", 10, 0, Some((16, 4, 50))),
    ("node-high", 40, 25, Some((64, 6, 50))),
    ("system", 30, 33, Some((64, 6, 50))),
    ("workload-high", 40, 50, Some((128, 6, 50))),
    ("workload-low", 100, 90, Some((128, 6, 50))),
];

/// What a rule allows: everything, or the named resources.
enum What {
    Everything,
    /// Verbs, group, resources, whether outside of namespaces too.
    Resources(&'static [&'static str], &'static str, &'static [&'static str], bool),
    Paths(&'static [&'static str]),
}

use What::{Everything, Paths, Resources};

/// Name, level, precedence, how flows are told apart, subjects (`G:` group, `U:` user, `S:` service account), rules.
type Schema = (&'static str, &'static str, i64, &'static str, &'static [&'static str], &'static [What]);

const ALL_USERS: &[&str] = &["G:system:unauthenticated", "G:system:authenticated"];
const LEASES: What = Resources(&["get", "create", "update"], "coordination.k8s.io", &["leases"], false);

#[rustfmt::skip]
const FLOWS: [Schema; 13] = [
    ("exempt", "exempt", 1, "", &["G:system:masters"], &[Everything]),
    ("probes", "exempt", 2, "", ALL_USERS, &[Paths(&["/healthz", "/readyz", "/livez"])]),
    ("system-leader-election", "leader-election", 100, "ByUser",
        &["U:system:kube-controller-manager", "U:system:kube-scheduler", "S:kube-system:*"], &[LEASES]),
    ("endpoint-controller", "workload-high", 150, "ByUser",
        &["U:system:kube-controller-manager", "S:kube-system:endpoint-controller", "S:kube-system:endpointslicemirroring-controller"],
        &[Resources(&["get", "create", "update"], "", &["endpoints"], false)]),
    ("workload-leader-election", "leader-election", 200, "ByUser", &["S:kube-system:*"], &[LEASES]),
    ("system-node-high", "node-high", 400, "ByUser", &["G:system:nodes"], &[
        Resources(&["*"], "", &["nodes", "nodes/status"], true),
        Resources(&["*"], "coordination.k8s.io", &["leases"], false),
    ]),
    ("system-nodes", "system", 500, "ByUser", &["G:system:nodes"], &[Everything]),
    ("kube-controller-manager", "workload-high", 800, "ByNamespace", &["U:system:kube-controller-manager"], &[Everything]),
    ("kube-scheduler", "workload-high", 800, "ByNamespace", &["U:system:kube-scheduler"], &[Everything]),
    ("kube-system-service-accounts", "workload-high", 900, "ByNamespace", &["S:kube-system:*"], &[Everything]),
    ("service-accounts", "workload-low", 9000, "ByUser", &["G:system:serviceaccounts"], &[Everything]),
    ("global-default", "global-default", 9900, "ByUser", ALL_USERS, &[Everything]),
    ("catch-all", "catch-all", 10000, "ByUser", ALL_USERS, &[Everything]),
];

/// The specs of the priority levels by their names.
pub fn levels() -> Vec<(&'static str, Value)> {
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let limited = LIMITED.into_iter().map(|(name, shares, lendable, queuing)| {
        let response = match queuing {
            None => json!({"type": "Reject"}),
            Some((queues, hand, length)) => {
                json!({"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": length}})
            }
        };
        let limited =
            json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response});
        (name, json!({"type": "Limited", "limited": limited}))
    });
    std::iter::once(("exempt", exempt)).chain(limited).collect()
}

/// The specs of the flow schemas by their names.
pub fn schemas() -> Vec<(&'static str, Value)> {
    let spec = |(name, level, precedence, distinguisher, subjects, rules): Schema| {
        let mut spec = json!({
            "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": [rule(subjects, rules)],
        });
        if !distinguisher.is_empty() {
            spec["distinguisherMethod"] = json!({"type": distinguisher});
        }
        (name, spec)
    };
    FLOWS.into_iter().map(spec).collect()
}

fn rule(subjects: &[&str], rules: &[What]) -> Value {
    let subject = |text: &&str| match text.split_at(2) {
        ("G:", name) => json!({"kind": "Group", "group": {"name": name}}),
        ("U:", name) => json!({"kind": "User", "user": {"name": name}}),
        (_, account) => {
            let (namespace, name) = account.split_once(':').unwrap_or((account, "*"));
            json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": name}})
        }
    };
    let mut made = json!({"subjects": subjects.iter().map(subject).collect::<Vec<_>>()});
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for what in rules {
        match what {
            Everything => {
                resources.push(json!({
                    "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true,
                }));
                paths.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
            }
            Resources(verbs, group, names, cluster) => {
                let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": names, "namespaces": ["*"]});
                if *cluster {
                    rule["clusterScope"] = true.into();
                }
                resources.push(rule);
            }
            Paths(urls) => paths.push(json!({"verbs": ["get"], "nonResourceURLs": urls})),
        }
    }
    if !resources.is_empty() {
        made["resourceRules"] = resources.into();
    }
    if !paths.is_empty() {
        made["nonResourceRules"] = paths.into();
    }
    made
}
