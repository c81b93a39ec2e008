"""The Python client (PyPI: kubernetes) against a cluster: what a script or an operator in Python does with it.

    PYTHONPATH=.cache/python python3 conformance/clients/python_client.py --kubeconfig FILE

The closing line is `N passed, M failed`.
"""

import argparse
import sys
import threading
import time
import traceback
import uuid

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.configmaplock import ConfigMapLock
from kubernetes.stream import portforward, stream

IMAGE = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1"
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def eventually(what, ask, seconds=60):
    end = time.time() + seconds
    while time.time() < end:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds} s for {what}")


def expect_error(status, reason, call):
    try:
        call()
    except ApiException as error:
        assert error.status == status and error.reason == reason, f"{error.status} {error.reason}, not {status} {reason}"
        return error
    raise AssertionError(f"no error, expected {status}")


def config_map(name, data=None, labels=None):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels=labels), data=data or {})


def pod(name, *command, labels=None):
    container = client.V1Container(name="main", image=IMAGE, command=list(command))
    spec = client.V1PodSpec(containers=[container], restart_policy="Never", termination_grace_period_seconds=1)
    return client.V1Pod(metadata=client.V1ObjectMeta(name=name, labels=labels), spec=spec)


@check
def objects_are_created_read_changed_and_deleted(ns):
    core = client.CoreV1Api()
    made = core.create_namespaced_config_map(ns, config_map("a", {"k": "1"}))
    assert made.metadata.uid and made.metadata.creation_timestamp.tzinfo is not None
    read = core.read_namespaced_config_map("a", ns)
    assert read.data == {"k": "1"}
    read.data["k"] = "2"
    replaced = core.replace_namespaced_config_map("a", ns, read)
    assert int(replaced.metadata.resource_version) > int(made.metadata.resource_version)
    error = expect_error(409, "Conflict", lambda: core.replace_namespaced_config_map("a", ns, made))
    assert "the object has been modified" in error.body
    expect_error(409, "Conflict", lambda: core.create_namespaced_config_map(ns, config_map("a")))
    status = core.delete_namespaced_config_map("a", ns)
    assert status.status == "Success" and status.details.name == "a"
    expect_error(404, "Not Found", lambda: core.read_namespaced_config_map("a", ns))


@check
def patches_of_every_type_are_applied(ns):
    core = client.CoreV1Api()
    core.create_namespaced_config_map(ns, config_map("p", {"k": "1"}))
    assert core.patch_namespaced_config_map("p", ns, {"data": {"m": "2"}}).data == {"k": "1", "m": "2"}
    operations = [{"op": "replace", "path": "/data/k", "value": "3"}, {"op": "remove", "path": "/data/m"}]
    assert core.patch_namespaced_config_map("p", ns, operations).data == {"k": "3"}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "p"}, "data": {"k": "4"}}
    configmaps = dynamic.DynamicClient(client.ApiClient()).resources.get(api_version="v1", kind="ConfigMap")
    configmaps.server_side_apply(body=body, name="p", namespace=ns, field_manager="py", force_conflicts=True)
    applied = core.read_namespaced_config_map("p", ns)
    assert applied.data == {"k": "4"} and any(m.manager == "py" for m in applied.metadata.managed_fields)
    deployment = client.V1Deployment(
        metadata=client.V1ObjectMeta(name="d"),
        spec=client.V1DeploymentSpec(
            replicas=0, selector=client.V1LabelSelector(match_labels={"a": "d"}),
            template=client.V1PodTemplateSpec(
                metadata=client.V1ObjectMeta(labels={"a": "d"}),
                spec=client.V1PodSpec(containers=[client.V1Container(name="one", image=IMAGE)]))))
    apps = client.AppsV1Api()
    apps.create_namespaced_deployment(ns, deployment)
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "two", "image": IMAGE}]}}}}
    containers = apps.patch_namespaced_deployment("d", ns, patch).spec.template.spec.containers
    assert sorted(c.name for c in containers) == ["one", "two"]
    assert apps.patch_namespaced_deployment_scale("d", ns, {"spec": {"replicas": 0}}).status.replicas == 0


@check
def lists_are_paged_and_selected(ns):
    core = client.CoreV1Api()
    for i in range(7):
        core.create_namespaced_config_map(ns, config_map(f"n{i}", labels={"odd": str(i % 2)}))
    names, token = [], None
    while True:
        page = core.list_namespaced_config_map(ns, label_selector="odd", limit=3, _continue=token)
        names += [item.metadata.name for item in page.items]
        token = page.metadata._continue
        if not token:
            break
    assert names == [f"n{i}" for i in range(7)]
    selected = core.list_namespaced_config_map(ns, label_selector="odd=1", field_selector="metadata.name!=n3")
    assert [i.metadata.name for i in selected.items] == ["n1", "n5"]
    core.delete_collection_namespaced_config_map(ns, label_selector="odd")
    assert core.list_namespaced_config_map(ns, label_selector="odd").items == []


@check
def watches_see_every_change_and_resume(ns):
    core = client.CoreV1Api()
    start = core.list_namespaced_config_map(ns).metadata.resource_version
    core.create_namespaced_config_map(ns, config_map("w", {"k": "1"}))
    core.patch_namespaced_config_map("w", ns, {"data": {"k": "2"}})
    core.delete_namespaced_config_map("w", ns)
    seen, version = [], start
    for event in watch.Watch().stream(core.list_namespaced_config_map, ns, resource_version=start, timeout_seconds=3):
        seen.append((event["type"], event["object"].data["k"]))
        if len(seen) == 1:
            version = event["object"].metadata.resource_version
    assert seen == [("ADDED", "1"), ("MODIFIED", "2"), ("DELETED", "2")], seen
    rest = watch.Watch().stream(core.list_namespaced_config_map, ns, resource_version=version, timeout_seconds=2)
    assert [e["type"] for e in rest] == ["MODIFIED", "DELETED"]
    try:
        for event in watch.Watch().stream(core.list_namespaced_config_map, ns, resource_version="1", timeout_seconds=2):
            pass
    except ApiException as error:
        assert error.status == 410, error
    live = []
    w = watch.Watch()
    threading.Timer(1, lambda: core.create_namespaced_config_map(ns, config_map("live"))).start()
    for event in w.stream(core.list_namespaced_config_map, ns, resource_version=core.list_namespaced_config_map(ns).metadata.resource_version, timeout_seconds=20):
        live.append(event["object"].metadata.name)
        w.stop()
    assert live == ["live"]


@check
def pods_are_reached_by_exec_log_and_port_forward(ns):
    core = client.CoreV1Api()
    script = "echo started; echo served > /tmp/index.html; httpd -f -p 8080 -h /tmp"
    core.create_namespaced_pod(ns, pod("sh", "sh", "-c", script, labels={"app": "sh"}))
    for event in watch.Watch().stream(core.list_namespaced_pod, ns, label_selector="app=sh", timeout_seconds=60):
        if event["object"].status.phase == "Running":
            break
    eventually("the log", lambda: core.read_namespaced_pod_log("sh", ns, _preload_content=False).data == b"started\n", 10)
    command = ["sh", "-c", "echo out; echo err >&2"]
    output = stream(core.connect_get_namespaced_pod_exec, "sh", ns, command=command, stdout=True, stderr=True, stdin=False, tty=False)
    assert sorted(output.split()) == ["err", "out"], output
    talk = stream(core.connect_get_namespaced_pod_exec, "sh", ns, command=["sh"], stdout=True, stderr=True, stdin=True,
                  tty=False, _preload_content=False)
    talk.write_stdin("echo hello $((6*7))\nexit 5\n")
    talk.run_forever(timeout=20)
    assert talk.read_stdout() == "hello 42\n" and talk.returncode == 5
    forward = portforward(core.connect_get_namespaced_pod_portforward, "sh", ns, ports="8080")
    socket = forward.socket(8080)
    socket.setblocking(True)
    socket.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = b""
    while piece := socket.recv(4096):
        answer += piece
    assert answer.endswith(b"served\n"), answer
    followed = []
    for line in watch.Watch().stream(core.read_namespaced_pod_log, "sh", ns, follow=True, tail_lines=1):
        followed.append(line)
        break
    assert followed == ["started"]
    eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name="sh"))
    core.create_namespaced_pod_eviction("sh", ns, eviction)
    eventually("the pod to go", lambda: not core.list_namespaced_pod(ns, label_selector="app=sh").items)


@check
def jobs_run_and_events_tell_of_them(ns):
    template = client.V1PodTemplateSpec(spec=pod("x", "true").spec)
    job = client.V1Job(metadata=client.V1ObjectMeta(name="once"), spec=client.V1JobSpec(template=template))
    batch, core = client.BatchV1Api(), client.CoreV1Api()
    batch.create_namespaced_job(ns, job)
    eventually("the job", lambda: batch.read_namespaced_job_status("once", ns).status.succeeded == 1)
    events = core.list_namespaced_event(ns, field_selector="involvedObject.name=once").items
    assert "SuccessfulCreate" in [e.reason for e in events]
    batch.delete_namespaced_job("once", ns, propagation_policy="Foreground")
    eventually("the job to go", lambda: not batch.list_namespaced_job(ns).items)
    assert not core.list_namespaced_pod(ns, label_selector="job-name=once").items


@check
def the_dynamic_client_finds_and_drives_any_kind(ns):
    group = f"{ns}.example"
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer", "default": 3}}}}}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": f"things.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": {"plural": "things", "singular": "thing", "kind": "Thing"},
                 "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}]},
    }
    dyn = dynamic.DynamicClient(client.ApiClient())
    crds = dyn.resources.get(api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition")
    crds.create(body=definition)

    def find():
        try:
            dyn.resources.invalidate_cache()
            return dyn.resources.get(api_version=f"{group}/v1", kind="Thing")
        except dynamic.exceptions.ResourceNotFoundError:
            return None

    things = eventually("the new kind in discovery", find, 20)
    body = {"apiVersion": f"{group}/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": {}}
    made = things.create(body=body, namespace=ns)
    assert made.spec.size == 3
    assert things.patch(body={"spec": {"size": 4}}, name="t", namespace=ns, content_type="application/merge-patch+json").spec.size == 4
    body["spec"]["size"] = 5
    assert things.server_side_apply(body=body, name="t", namespace=ns, field_manager="py", force_conflicts=True).spec.size == 5
    custom = client.CustomObjectsApi()
    assert custom.get_namespaced_custom_object(group, "v1", ns, "things", "t")["spec"] == {"size": 5}
    events = things.watch(namespace=ns, timeout=2)
    assert [e["type"] for e in events] == ["ADDED"]
    things.delete(name="t", namespace=ns)
    crds.delete(name=f"things.{group}")


@check
def one_of_two_candidates_leads(ns):
    leaders = []

    def candidate(name):
        election = electionconfig.Config(
            ConfigMapLock("leader", ns, name), lease_duration=4, renew_deadline=3, retry_period=1,
            onstarted_leading=lambda: leaders.append(name), onstopped_leading=None)
        threading.Thread(target=leaderelection.LeaderElection(election).run, daemon=True).start()

    candidate("first")
    eventually("the first leader", lambda: leaders == ["first"], 20)
    candidate("second")
    time.sleep(6)
    assert leaders == ["first"], leaders
    annotations = client.CoreV1Api().read_namespaced_config_map("leader", ns).metadata.annotations
    assert '"holderIdentity": "first"' in annotations["control-plane.alpha.kubernetes.io/leader"]


@check
def manifests_are_created_from_dictionaries(ns):
    manifest = {"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "m"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "m"}, "spec": {"ports": [{"port": 80}]}}]}
    utils.create_from_dict(client.ApiClient(), manifest, namespace=ns)
    service = client.CoreV1Api().read_namespaced_service("m", ns)
    assert service.spec.ports[0].target_port == 80 and service.spec.cluster_ip


@check
def the_server_says_what_it_is(ns):
    version = client.VersionApi().get_code()
    assert version.major == "1" and version.git_version.startswith("v1.36"), version
    groups = [g.name for g in client.ApisApi().get_api_versions().groups]
    assert "apps" in groups and groups.index("apps") < groups.index("storage.k8s.io")
    review = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(
        resource_attributes=client.V1ResourceAttributes(verb="list", resource="pods", namespace=ns)))
    assert client.AuthorizationV1Api().create_self_subject_access_review(review).status.allowed
    token = client.CoreV1Api().create_namespaced_service_account_token(
        "default", ns, client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=["a"], expiration_seconds=600)))
    assert token.status.token.count(".") == 2


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--kubeconfig", required=True)
    config.load_kube_config(arguments.parse_args().kubeconfig)
    core, failed = client.CoreV1Api(), 0
    for function in CHECKS:
        ns = "py-" + uuid.uuid4().hex[:8]
        core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=ns)))
        eventually("the service account", lambda: core.list_namespaced_service_account(ns).items)
        start = time.time()
        try:
            function(ns)
            print(f"  ok    {function.__name__} ({time.time() - start:.1f} s)", flush=True)
        except Exception:
            failed += 1
            print(f"  FAIL  {function.__name__} ({time.time() - start:.1f} s)\n{traceback.format_exc()}", flush=True)
        core.delete_namespace(ns)
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
