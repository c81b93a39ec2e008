use super::*;
use crate::schema::builtin;
use serde_json::json;

fn write<'a>(schema: &'a StructRef, manager: &'a str) -> Write<'a> {
    Write {
        schema,
        api_version: "apps/v1",
        kind: "Deployment",
        manager,
        subresource: "",
        reset: None,
        versions: &SingleVersion,
        now: Timestamp::from_second(1_000_000_000).unwrap(),
    }
}

fn schema() -> &'static StructRef {
    builtin().short("apps.v1.Deployment").unwrap()
}

fn config(extra: Value) -> Value {
    let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}});
    object["spec"] = extra;
    object
}

fn owners(object: &Value) -> Value {
    let entries = entries_of(object).and_then(Value::as_array).cloned().unwrap_or_default();
    let one = |e: Value| {
        (format!("{}/{}", e["manager"].as_str().unwrap(), e["operation"].as_str().unwrap()), e["fieldsV1"].clone())
    };
    Value::Object(entries.into_iter().map(one).collect())
}

#[test]
fn a_creator_owns_what_is_not_always_there() {
    let mut object = config(json!({
        "selector": {"matchLabels": {"a": "b"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": "1"}], "resources": {}}]}},
    }));
    object["status"] = json!({});
    update(&write(schema(), "me"), None, &mut object);
    assert_eq!(
        owners(&object)["me/Update"],
        json!({"f:spec": {
            "f:selector": {},
            "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}}, "f:type": {}},
            "f:template": {
                "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {
                    ".": {}, "f:env": {".": {}, "k:{\"name\":\"A\"}": {".": {}, "f:name": {}, "f:value": {}}},
                    "f:name": {}, "f:resources": {},
                }}},
            },
        }})
    );
}

#[test]
fn an_update_takes_what_it_changes_and_nothing_else() {
    let mut live = config(json!({"replicas": 1, "paused": true, "template": {"spec": {"containers": []}}}));
    update(&write(schema(), "one"), None, &mut live);
    let mut new = live.clone();
    new["spec"]["replicas"] = 2.into();
    update(&write(schema(), "two"), Some(&live), &mut new);
    assert_eq!(
        owners(&new),
        json!({
            "one/Update": {"f:spec": {"f:paused": {}, "f:template": {"f:spec": {"f:containers": {}}}}},
            "two/Update": {"f:spec": {"f:replicas": {}}},
        })
    );
    let mut same = new.clone();
    update(&Write { now: Timestamp::now(), ..write(schema(), "three") }, Some(&new), &mut same);
    assert_eq!(same, new);
    // Fields that go away are nobody's.
    let mut less = new.clone();
    less["spec"].as_object_mut().unwrap().remove("paused");
    update(&write(schema(), "two"), Some(&new), &mut less);
    assert!(owners(&less)["one/Update"]["f:spec"].get("f:paused").is_none());
}

#[test]
fn appliers_merge_conflict_and_prune() {
    let ports = |ports: Value| {
        config(json!({"template": {"spec": {"containers": [{"name": "c", "image": "i", "ports": ports}]}}}))
    };
    let first =
        apply(&write(schema(), "a"), None, &ports(json!([{"containerPort": 80}, {"containerPort": 81}])), false);
    let first = first.unwrap().object;
    let second = config(json!({"template": {"spec": {"containers": [{"name": "c", "image": "i", "command": ["x"]}]}}}));
    let second = apply(&write(schema(), "b"), Some(&first), &second, false).unwrap().object;
    assert_eq!(second["spec"]["template"]["spec"]["containers"][0]["command"], json!(["x"]));

    let other = config(json!({"template": {"spec": {"containers": [{"name": "c", "image": "j"}]}}}));
    let refused = apply(&write(schema(), "b"), Some(&second), &other, false).unwrap_err();
    assert_eq!(
        refused.message,
        "Apply failed with 1 conflict: conflict with \"a\": .spec.template.spec.containers[name=\"c\"].image"
    );
    let forced = apply(&write(schema(), "b"), Some(&second), &other, true).unwrap().object;
    let container = &forced["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "j");
    // b no longer says `command`, a still says its ports.
    assert!(container.get("command").is_none());
    assert_eq!(container["ports"].as_array().unwrap().len(), 2);

    let fewer =
        apply(&write(schema(), "a"), Some(&forced), &ports(json!([{"containerPort": 81}])), true).unwrap().object;
    assert_eq!(fewer["spec"]["template"]["spec"]["containers"][0]["ports"], json!([{"containerPort": 81}]));

    let again = apply(&write(schema(), "a"), Some(&fewer), &ports(json!([{"containerPort": 81}])), true).unwrap();
    assert!(again.unchanged);
    assert_eq!(again.object, fewer);
}

#[test]
fn a_bad_configuration_is_refused_in_upstreams_words() {
    let refused = |spec: Value| apply(&write(schema(), "a"), None, &config(spec), false).unwrap_err().message;
    let ports = json!([{"containerPort": 81}, {"containerPort": 81}]);
    assert_eq!(
        refused(json!({"template": {"spec": {"containers": [{"name": "c", "ports": ports}]}}})),
        "failed to create typed patch object (/d; apps/v1, Kind=Deployment): .spec.template.spec.containers[name=\"c\"].ports: \
         duplicate entries for key [containerPort=81,protocol=\"TCP\"]"
    );
    assert_eq!(
        refused(json!({"template": {"spec": {"containers": [{"name": "c", "image": 5}]}}, "x": 1})),
        "failed to create typed patch object (/d; apps/v1, Kind=Deployment): errors:\n  \
         .spec.template.spec.containers[name=\"c\"].image: expected string, got &value.valueUnstructured{Value:5}\n  \
         .spec.x: field not declared in schema"
    );
}

#[test]
fn old_updates_are_merged_when_there_are_too_many() {
    let mut live = config(json!({"replicas": 1, "template": {"spec": {"containers": []}}}));
    update(&write(schema(), "first"), None, &mut live);
    for i in 0..20 {
        let mut new = live.clone();
        new["metadata"]["labels"][format!("l{i}")] = "x".into();
        let now = Timestamp::from_second(1_000_000_100 + i).unwrap();
        update(&Write { now, ..write(schema(), &format!("m{i}")) }, Some(&live), &mut new);
        live = new;
    }
    let owners = owners(&live);
    assert_eq!(owners.as_object().unwrap().len(), 10);
    assert!(owners["ancient-changes/Update"]["f:spec"].get("f:replicas").is_some());
    assert!(owners.get("m19/Update").is_some());
}
