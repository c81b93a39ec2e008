use super::*;
use std::time::Duration;

fn level(name: &str, limited: Value) -> Arc<Value> {
    Arc::new(
        json!({"metadata": {"name": name, "uid": format!("{name}-uid")}, "spec": {"type": "Limited", "limited": limited}}),
    )
}

fn schema(name: &str, level: &str, precedence: i64, group: &str) -> Arc<Value> {
    Arc::new(json!({"metadata": {"name": name, "uid": format!("{name}-uid")}, "spec": {
        "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence,
        "distinguisherMethod": {"type": "ByUser"},
        "rules": [{"subjects": [{"kind": "Group", "group": {"name": group}}], "resourceRules": [
            {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true}]}]}}))
}

fn user(name: &str, group: &str) -> User {
    User { name: name.into(), groups: vec![group.into()], ..User::default() }
}

fn get() -> RequestInfo {
    RequestInfo { is_resource: true, verb: "get".into(), resource: "pods".into(), ..RequestInfo::default() }
}

/// One seat for `narrow`, with room for one who waits; the rest for others.
fn control() -> FlowControl {
    let control = FlowControl::new(10);
    let queue = json!({"type": "Queue", "queuing": {"queues": 1, "handSize": 1, "queueLengthLimit": 1}});
    let levels = [
        level("narrow", json!({"nominalConcurrencyShares": 10, "limitResponse": queue})),
        level("wide", json!({"nominalConcurrencyShares": 85, "limitResponse": {"type": "Reject"}})),
    ];
    let schemas =
        [schema("few", "narrow", 10, "few"), schema("many", "wide", 20, "many"), schema("lost", "none", 5, "few")];
    let config = Config::of([0; 2], &schemas, &levels, &Config::default(), 10, Duration::ZERO);
    control.config.store(Arc::new(config));
    control
}

const LONG: Duration = Duration::from_secs(40);

#[tokio::test(start_paused = true)]
async fn a_level_that_is_full_refuses_its_own_and_no_others() {
    let control = control();
    let resources = Resources::default();
    let (few, many, info) = (user("a", "few"), user("b", "many"), get());
    let schema = control.classify(&resources, &few, &info);
    assert_eq!((schema.uid.to_str().unwrap(), schema.level_uid.to_str().unwrap()), ("few-uid", "narrow-uid"));
    let first = control.enter(&schema, &few, &info, 1, LONG).await.unwrap();
    // The second waits, and so the third is refused at once.
    let mut second = Box::pin(control.enter(&schema, &few, &info, 1, LONG));
    assert!(futures::poll!(&mut second).is_pending());
    assert_eq!(control.enter(&schema, &few, &info, 1, LONG).await.err().unwrap().retry_after, 1);
    let other = control.classify(&resources, &many, &info);
    assert!(control.enter(&other, &many, &info, 1, LONG).await.is_ok());
    drop(first);
    let second = second.await.unwrap();
    // One that waits too long is refused, and leaves its place to others.
    assert!(control.enter(&schema, &few, &info, 1, LONG).await.is_err());
    let third = Box::pin(control.enter(&schema, &few, &info, 1, LONG));
    drop(third);
    drop(second);
    assert!(control.enter(&schema, &few, &info, 1, LONG).await.is_ok());
    let mut text = String::new();
    control.render(&mut text);
    for line in [
        r#"apiserver_flowcontrol_rejected_requests_total{flow_schema="few",priority_level="narrow",reason="queue-full"} 1"#,
        r#"apiserver_flowcontrol_rejected_requests_total{flow_schema="few",priority_level="narrow",reason="time-out"} 1"#,
        r#"apiserver_flowcontrol_dispatched_requests_total{flow_schema="few",priority_level="narrow"} 3"#,
        r#"apiserver_flowcontrol_current_executing_requests{flow_schema="few",priority_level="narrow"} 0"#,
        r#"apiserver_flowcontrol_current_inqueue_requests{flow_schema="few",priority_level="narrow"} 0"#,
        r#"apiserver_flowcontrol_nominal_limit_seats{priority_level="narrow"} 1"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn who_is_in_no_schema_is_caught_and_masters_are_exempt() {
    let control = control();
    let resources = Resources::default();
    let info = get();
    let master = user("root", MASTERS);
    let schema = control.classify(&resources, &master, &info);
    assert_eq!(&*schema.name, "exempt");
    let mut seats = Vec::new();
    for _ in 0..100 {
        seats.push(control.enter(&schema, &master, &info, 1, LONG).await.unwrap());
    }
    let stranger = user("x", "unknown");
    let schema = control.classify(&resources, &stranger, &info);
    assert_eq!(&*schema.name, "catch-all");
    let _seat = control.enter(&schema, &stranger, &info, 1, LONG).await.unwrap();
    assert!(control.enter(&schema, &stranger, &info, 1, LONG).await.is_err());
}

#[tokio::test]
async fn seats_that_nobody_uses_are_lent() {
    let control = FlowControl::new(10);
    let reject = json!({"type": "Reject"});
    let levels = [
        level("busy", json!({"nominalConcurrencyShares": 45, "limitResponse": reject})),
        level("idle", json!({"nominalConcurrencyShares": 50, "lendablePercent": 80, "limitResponse": reject})),
    ];
    let schemas = [schema("few", "busy", 10, "few"), schema("many", "idle", 20, "many")];
    let config = Arc::new(Config::of([0; 2], &schemas, &levels, &Config::default(), 10, Duration::ZERO));
    control.config.store(config.clone());
    let (few, info) = (user("a", "few"), get());
    let schema = control.classify(&Resources::default(), &few, &info);
    let mut seats = Vec::new();
    while let Ok(seat) = control.enter(&schema, &few, &info, 1, LONG).await {
        seats.push(seat);
    }
    assert_eq!(seats.len(), 5);
    config.deal(10, Duration::from_secs(10));
    while let Ok(seat) = control.enter(&schema, &few, &info, 1, LONG).await {
        seats.push(seat);
    }
    assert!((7..=9).contains(&seats.len()), "{} seats", seats.len());
}
