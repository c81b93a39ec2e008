#!/usr/bin/env python3
"""What a thousand CustomResourceDefinitions of usual size cost an API server: resident memory, time to create them and until
they are served, and how long it takes to discover them.

    bench/crds.py --server URL --token T --pid PID [--count 1000] [--kubectl PATH]

Every definition has a schema of some 20 KB: descriptions, nested objects and lists, patterns, enums, a rule, printer columns,
and the status subresource. Standard library only.
"""
import argparse
import concurrent.futures
import json
import random
import ssl
import subprocess
import tempfile
import threading
import time
import http.client
import urllib.parse

WORDS = ("the name of a secret that holds what is needed to reach the other side and how long it may be kept before it has to "
         "be renewed by whoever is responsible for the issuer of this resource").split()


def text(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def leaf(rng):
    kind = rng.randrange(6)
    made = {"description": text(rng, 18)}
    if kind == 0:
        made |= {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
    elif kind == 1:
        made |= {"type": "string", "enum": ["Always", "Never", "IfNotPresent"]}
    elif kind == 2:
        made |= {"type": "integer", "format": "int32", "minimum": 0, "default": 3}
    elif kind == 3:
        made |= {"type": "array", "maxItems": 32, "items": {"type": "string", "maxLength": 253}, "x-kubernetes-list-type": "set"}
    elif kind == 4:
        made |= {"type": "object", "additionalProperties": {"type": "string"}}
    else:
        made |= {"type": "string"}
    return made


def tree(rng, depth):
    properties = {}
    for i in range(7):
        properties[f"field{i}"] = tree(rng, depth - 1) if depth > 0 and i < 2 else leaf(rng)
    made = {"type": "object", "description": text(rng, 24), "properties": properties}
    if depth == 2:
        made["required"] = ["field6"]
    return made


def definition(n):
    rng = random.Random(n)
    spec = tree(rng, 3)
    spec["x-kubernetes-validations"] = [{"rule": "self == oldSelf || true", "message": "may change"}]
    status = {"type": "object", "properties": {"conditions": {
        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"], "items": {
            "type": "object", "required": ["type", "status"], "properties": {
                name: {"type": "string", "description": text(rng, 20)} for name in
                ("type", "status", "reason", "message", "lastTransitionTime")}}}}}
    schema = {"type": "object", "description": text(rng, 30), "properties": {
        "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
        "spec": spec, "status": status}}
    group = f"group{n // 10}.crds.example"
    return {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": f"things{n}.{group}"},
            "spec": {"group": group, "scope": "Namespaced",
                     "names": {"plural": f"things{n}", "kind": f"Thing{n}", "shortNames": [f"th{n}"], "categories": ["all"]},
                     "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema},
                                   "subresources": {"status": {}},
                                   "additionalPrinterColumns": [
                                       {"name": "Ready", "type": "string",
                                        "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
                                       {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]}]}}


def resident(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith("VmRSS:"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--pid", type=int, required=True, help="process whose memory is measured")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--kubectl", help="also time `kubectl api-resources` with this binary")
    args = parser.parse_args()
    url = urllib.parse.urlparse(args.server)
    context = ssl._create_unverified_context()
    local = threading.local()

    def call(method, path, body=None):
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPSConnection(url.hostname, url.port, context=context)
        local.connection.request(method, path, body=None if body is None else json.dumps(body), headers={
            "Authorization": f"Bearer {args.token}", "Content-Type": "application/json",
            "Accept": "application/json"})
        answer = local.connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.status} {data[:300]!r}")
        return data

    size = len(json.dumps(definition(0)))
    call("GET", "/openapi/v3")
    before = resident(args.pid)
    begun = time.time()
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: call("POST", path, definition(n)), range(args.count)))
    created = time.time() - begun
    # Idle meanwhile, and perhaps closed by the server.
    local.connection.close()

    def served():
        groups = json.loads(call("GET", "/apis"))["groups"]
        return sum(g["name"].endswith(".crds.example") for g in groups)

    while served() < (args.count + 9) // 10:
        time.sleep(0.2)
    last = (args.count - 1) // 10
    while True:
        try:
            found = json.loads(call("GET", f"/apis/group{last}.crds.example/v1"))
            if sum("/" not in r["name"] for r in found["resources"]) == (args.count - 1) % 10 + 1:
                break
        except SystemExit:
            pass
        time.sleep(0.2)
    ready = time.time() - begun
    time.sleep(3)
    after = resident(args.pid)
    print(f"{args.count} definitions of {size / 1024:.0f} KB: created in {created:.1f} s, served after {ready:.1f} s")
    print(f"resident memory: {before:.0f} MB before, {after:.0f} MB after, {(after - before) * 1024 / args.count:.0f} KB each")
    for what, document in [("openapi v3 of one group", f"/openapi/v3/apis/group{last}.crds.example/v1"),
                           ("openapi v2", "/openapi/v2")]:
        begun = time.time()
        data = call("GET", document)
        print(f"{what}: {len(data) / 1024:.0f} KB in {time.time() - begun:.2f} s, {resident(args.pid):.0f} MB resident")
    if args.kubectl:
        with tempfile.TemporaryDirectory() as cache:
            command = [args.kubectl, "--server", args.server, "--token", args.token, "--insecure-skip-tls-verify",
                       "--cache-dir", cache, "api-resources"]
            begun = time.time()
            lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.count("\n")
            print(f"kubectl api-resources: {lines} lines in {time.time() - begun:.2f} s, {resident(args.pid):.0f} MB resident")


main()
