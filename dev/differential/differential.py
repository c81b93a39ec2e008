#!/usr/bin/env python3
"""Sends the same odd objects to two API servers and shows where their answers differ.

Takes a valid object of each kind, changes one field at a time by the schema that the reference server publishes, and sends each
as a dry run to both. Status codes, messages, warnings and resulting objects must be the same. What a server chooses freely
(uids, times, addresses) is left out. For updates one object of each kind is stored, in a namespace of its own, and removed.

    differential.py --server URL --token T --against URL --against-token T [--kind NAME]… [--verb create|update|status]

Where the reference is an upstream kube-apiserver of the same version, every line it prints is a defect.
"""

import argparse
import collections
import concurrent.futures
import copy
import http.client
import json
import os
import random
import re
import ssl
import threading
import time
import urllib.parse

NAMESPACE = "differential"
FREE = {"uid", "resourceVersion", "creationTimestamp", "time", "clusterIP", "nodePort", "healthCheckNodePort"}


class Api:
    def __init__(self, url, token):
        self.host, self.token = urllib.parse.urlsplit(url).netloc, token
        self.context, self.local = ssl._create_unverified_context(), threading.local()

    def call(self, method, path, body=None, content_type="application/json"):
        """Status code, body and warnings."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": "Bearer " + self.token, "Accept": "application/json", "User-Agent": "differential/1"}
        if data is not None:
            headers["Content-Type"] = content_type
        error = None
        for _ in range(4):
            connection = getattr(self.local, "connection", None)
            if connection is None:
                connection = http.client.HTTPSConnection(self.host, context=self.context, timeout=60)
                self.local.connection = connection
            try:
                connection.request(method, path, data, headers)
                response = connection.getresponse()
                raw = response.read()
            except (http.client.HTTPException, OSError) as failure:
                connection.close()
                self.local.connection, error = None, failure
                continue
            if response.status == 429:
                time.sleep(1)
                continue
            try:
                return response.status, json.loads(raw), response.getheader("Warning")
            except ValueError:
                return response.status, raw.decode("utf-8", "replace"), response.getheader("Warning")
        return 0, str(error), None


def mask(tree):
    """Blanks what two servers may choose differently."""
    if isinstance(tree, dict):
        out = {}
        for key, value in tree.items():
            if key in FREE and value not in ("", "None") and not isinstance(value, (dict, list)):
                value = "<%s>" % key
            elif key == "clusterIPs" and value != ["None"]:
                value = "<ips>"
            out[re.sub(r"kube-api-access-[a-z0-9]{5}", "kube-api-access-<…>", key)] = mask(value)
        return out
    if isinstance(tree, list):
        return [mask(item) for item in tree]
    if isinstance(tree, str):
        # Go's own structs, which some refusals print, are nobody's API.
        tree = re.sub(r"(if it was previously negative\)).*", r"\1", tree, flags=re.S)
        if "Invalid value: {" in tree and any(s in tree for s in ('"spec":{', '"Volumes":', '"containers":')):
            tree = re.sub(r"Invalid value: \{.*\}: ", "Invalid value: <struct>: ", tree)
        tree = re.sub(r"kube-api-access-[a-z0-9]{5}", "kube-api-access-<…>", tree)
        tree = re.sub(r"20[2-9]\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?", "<time>", tree)
        tree = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uid>", tree)
    return tree


def first_difference(a, b, path=""):
    """Where two trees first differ, and what each has there."""
    if isinstance(a, dict) and isinstance(b, dict):
        steps = [(".%s" % key, a.get(key, "<absent>"), b.get(key, "<absent>")) for key in sorted(set(a) | set(b))]
    elif isinstance(a, list) and isinstance(b, list):
        longest = range(max(len(a), len(b)))
        at = lambda items, i: items[i] if i < len(items) else "<absent>"
        steps = [("[%d]" % i, at(a, i), at(b, i)) for i in longest]
    else:
        return None if type(a) is type(b) and a == b else (path, a, b)
    for step, left, right in steps:
        found = first_difference(left, right, path + step)
        if found:
            return found
    return None


class Schemas:
    """The OpenAPI v3 schemas of a server."""

    def __init__(self, api):
        self.named, self.kinds = {}, {}
        for path, entry in api.call("GET", "/openapi/v3")[1]["paths"].items():
            if path.startswith(("api/", "apis/")):
                document = api.call("GET", entry["serverRelativeURL"])[1]
                for name, schema in document.get("components", {}).get("schemas", {}).items():
                    self.named[name] = schema
                    for kind in schema.get("x-kubernetes-group-version-kind", []):
                        self.kinds[kind["group"], kind["version"], kind["kind"]] = schema

    def shape(self, schema):
        """What sort of value it describes, and the schema itself."""
        name = ""
        for _ in range(5):
            if "$ref" in schema:
                name = schema["$ref"].rsplit("/", 1)[1]
                schema = self.named.get(name, {})
            elif len(schema.get("allOf", [])) == 1 and "type" not in schema:
                schema = schema["allOf"][0]
        if name.endswith("resource.Quantity"):
            return "quantity", schema
        if name.endswith("IntOrString") or schema.get("format") == "int-or-string":
            return "int-or-string", schema
        if schema.get("format") == "date-time":
            return "time", schema
        if schema.get("type") == "object" or "properties" in schema:
            is_map = "properties" not in schema and isinstance(schema.get("additionalProperties"), dict)
            return ("map" if is_map else "object"), schema
        if schema.get("type") == "string" and "enum" in schema:
            return "enum", schema
        if schema.get("format") == "byte":
            return "bytes", schema
        return schema.get("type", "any"), schema

    def sample(self, schema, depth=0):
        """The least value that has what is required."""
        kind, schema = self.shape(schema)
        if kind == "object":
            fields = schema.get("properties", {})
            wanted = [key for key in schema.get("required", []) if key in fields and depth < 6]
            return {key: self.sample(fields[key], depth + 1) for key in wanted}
        if kind == "map":
            return {"k1": self.sample(schema["additionalProperties"], depth + 1)}
        if kind == "array":
            return [self.sample(schema["items"], depth + 1)] if depth < 6 else []
        if kind == "enum":
            return schema["enum"][0]
        return SAMPLES.get(kind, "abc")

    def odd_values(self, schema):
        kind, schema = self.shape(schema)
        if kind == "enum":
            return schema["enum"] + ["Nonsense", ""]
        return [self.sample(schema)] if kind in ("object", "map", "array") else ODD.get(kind, ["abc", 1])


SAMPLES = {"quantity": "1", "int-or-string": 1, "time": "2001-02-03T04:05:06Z", "bytes": "YWJj", "integer": 1, "number": 1,
           "boolean": True}
ODD = {
    "string": ["", "abc", "Bad_Value!", "a/b", "/abs", "..", "-1", "12", "1.2.3.4", "a.b", "*", "a" * 64, "a" * 254],
    "bytes": ["", "YWJj", "!!"],
    "integer": [-1, 0, 1, 3, 65536, 2147483647],
    "number": [-1, 0, 1.5],
    "boolean": [True, False],
    "quantity": ["-1", "0", "1", "1500m", "1Gi", "abc", "", 2],
    "int-or-string": [-1, 0, 5, 70000, "50%", "150%", "abc", "-5%", "http", ""],
    "time": ["2001-01-01T00:00:00Z", "bad", ""],
}
ODD_KEYS = ["Bad Key!", "a/b/c", "UPPER.com/x", "example.com/x", "", "kubernetes.io/x"]
WRONG_TYPE = {"integer": "x", "number": "x", "boolean": "x", "quantity": {}, "int-or-string": True, "time": 5, "map": "x",
              "object": "x", "array": "x"}


class Marker:
    """Not there, or to be taken away: no value of JSON."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return self.name

    def __deepcopy__(self, _):
        return self


ABSENT, DELETE = Marker("ABSENT"), Marker("DELETE")


def changed(tree, path, value):
    """A copy with one place changed."""
    if not path:
        return copy.deepcopy(value)
    tree = copy.deepcopy(tree)
    at = tree
    for key in path[:-1]:
        at = at.setdefault(key, {}) if isinstance(at, dict) else at[key]
    if value is not DELETE:
        at[path[-1]] = copy.deepcopy(value)
    elif isinstance(at, list):
        del at[path[-1]]
    else:
        at.pop(path[-1], None)
    return tree


def mutations(schemas, schema, value, path=(), budget=3, types=False):
    """Yields places and new values. What is absent is filled in first, `budget` levels deep."""
    kind, schema = schemas.shape(schema)
    is_absent = value is ABSENT
    if path and not is_absent:
        yield path, DELETE
    if path and types:
        yield path, WRONG_TYPE.get(kind, 7)
        yield path, None
    if kind == "object":
        fields = schema.get("properties", {})
        if path and (is_absent or value):
            yield path, {}
        if is_absent:
            value = schemas.sample(schema)
            yield path, value
        if not isinstance(value, dict) or (path and budget <= 0):
            return
        for key, field in sorted(fields.items()):
            if (not path and key in ("apiVersion", "kind")) or (path == ("metadata",) and key == "managedFields"):
                continue
            inner = value.get(key, ABSENT)
            less = budget - 1 if is_absent or inner is ABSENT else budget
            if is_absent:
                for place, new in mutations(schemas, field, inner, (key,), less, types):
                    yield path, changed(value, place, new)
            else:
                yield from mutations(schemas, field, inner, path + (key,), less, types)
    elif kind == "array":
        item = schemas.sample(schema["items"])
        is_struct = schemas.shape(schema["items"])[0] == "object"
        if is_absent:
            yield path, [item]
            yield path, [item, item]
            if budget > 0 and is_struct:
                for place, new in mutations(schemas, schema["items"], item, (), budget - 1, types):
                    yield path, [changed(item, place, new) if place else new]
            elif budget > 0:
                yield from ((path, [odd]) for odd in schemas.odd_values(schema["items"]))
        elif isinstance(value, list):
            yield path, []
            yield path, value + [item]
            if value:
                yield path, value + [value[0]]
            for i, inner in enumerate(value[:2]):
                yield from mutations(schemas, schema["items"], inner, path + (i,), budget, types)
    elif kind == "map":
        inner = schema["additionalProperties"]
        if budget > 0:
            yield from ((path, {"k1": odd}) for odd in schemas.odd_values(inner))
        yield from ((path, {key: schemas.sample(inner)}) for key in ODD_KEYS)
        yield path, {}
        for key in list(value)[:3] if isinstance(value, dict) else []:
            yield path + (key,), DELETE
            yield from ((path + (key,), odd) for odd in schemas.odd_values(inner))
    else:
        yield from ((path, odd) for odd in schemas.odd_values(schema))


def show(value, most=400):
    text = value if isinstance(value, str) else json.dumps(value, default=repr, ensure_ascii=False)
    return text if len(text) <= most else text[: most - 60] + " … " + text[-50:]


def compared(got, want):
    """The class of the first difference and both sides, or nothing."""
    text = lambda body: show(body.get("message", body) if isinstance(body, dict) else body)
    if got[0] != want[0]:
        return "status", "%s %s" % (want[0], text(want[1])), "%s %s" % (got[0], text(got[1]))
    if got[2] != want[2]:
        return "warning", want[2], got[2]
    ours, theirs = mask(got[1]), mask(want[1])
    if isinstance(theirs, dict) and theirs.get("kind") == "Status" and theirs.get("message") != ours.get("message"):
        return "message", theirs.get("message"), ours.get("message")
    found = first_difference(theirs, ours)
    return found and ("body " + found[0], found[1], found[2])


class Subject:
    """One kind: its valid object, and how odd ones are sent."""

    def __init__(self, entry, verb, servers):
        self.verb, self.servers, self.name = verb, servers, entry["name"]
        base = copy.deepcopy(entry["object"])
        base["metadata"].pop("generateName", None)
        if "{ns}" in entry["path"]:
            base["metadata"]["namespace"] = NAMESPACE
        self.collection = entry["path"].replace("{ns}", NAMESPACE)
        self.path = "%s/%s" % (self.collection, base["metadata"].get("name", ""))
        # Objects as each server has them: names that it made up are part of them.
        self.bases = [base, base]
        if verb == "create":
            answers = [api.call("POST", self.collection + "?dryRun=All", base) for api in servers]
        else:
            self.remove()
            answers = [api.call("POST", self.collection, base) for api in servers]
        self.refusal = next((show(body) for code, body, _ in answers if code not in (200, 201)), None)
        if verb == "update" and not self.refusal:
            self.bases = [body for _, body, _ in answers]
            for own in self.bases:
                for key in ("uid", "resourceVersion", "managedFields", "creationTimestamp"):
                    own["metadata"].pop(key, None)
        if verb != "create" and entry.get("versioned") and not self.refusal:
            # Kinds that are not changed without saying which version of them.
            self.bases = [copy.deepcopy(own) for own in self.bases]
            for own, api in zip(self.bases, servers):
                own["metadata"]["resourceVersion"] = api.call("GET", self.path)[1]["metadata"]["resourceVersion"]

    def remove(self):
        if self.verb != "create":
            for api in self.servers:
                api.call("PATCH", self.path, {"metadata": {"finalizers": None}}, "application/merge-patch+json")
                api.call("DELETE", self.path, {"gracePeriodSeconds": 0})

    def send(self, place, value):
        method, path = ("POST", self.collection) if self.verb == "create" else ("PUT", self.path)
        path += "/status?dryRun=All" if self.verb == "status" else "?dryRun=All"
        pairs = zip(self.servers, self.bases)
        return compared(*[api.call(method, path, changed(base, place, value)) for api, base in pairs])


def cases_of(subject, schemas, schema, options):
    cases, seen = [], set()
    for place, value in mutations(schemas, schema, subject.bases[1], (), options.budget, options.types):
        is_status = bool(place) and place[0] == "status"
        if is_status != (subject.verb == "status") or not ".".join(map(str, place)).startswith(options.under):
            continue
        key = json.dumps([place, value], default=repr)
        if key not in seen:
            seen.add(key)
            cases.append((place, value))
    random.Random(options.seed).shuffle(cases)
    return cases[: options.most]


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--server", "--token", "--against", "--against-token"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--objects", default=os.path.join(here, "objects.json"), help="valid objects, with their paths")
    parser.add_argument("--kind", action="append", help="only the objects of this name")
    parser.add_argument("--verb", choices=["create", "update", "status"], default="create")
    parser.add_argument("--under", default="", help="only fields whose path begins so, such as spec.template")
    parser.add_argument("--types", action="store_true", help="values of wrong types too")
    parser.add_argument("--budget", type=int, default=3, help="how deep to fill in what is absent")
    parser.add_argument("--most", type=int, default=4000, help="cases of one object")
    parser.add_argument("--show", type=int, default=2, help="differences shown of one field and sort")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=8)
    options = parser.parse_args()
    servers = Api(options.server, options.token), Api(options.against, options.against_token)
    schemas = Schemas(servers[1])
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    for api in servers:
        api.call("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        api.call("POST", "/api/v1/namespaces/%s/serviceaccounts" % NAMESPACE, account)
    pool = concurrent.futures.ThreadPoolExecutor(options.jobs)
    sent = differences = 0
    with open(options.objects, encoding="utf-8") as file:
        entries = [e for e in json.load(file) if not options.kind or e["name"] in options.kind]
    for entry in entries:
        group, _, version = entry["object"]["apiVersion"].rpartition("/")
        schema = schemas.kinds.get((group, version, entry["object"]["kind"]))
        subject = Subject(entry, options.verb, servers)
        if schema is None or subject.refusal:
            print("%s: %s" % (entry["name"], subject.refusal or "the reference has no schema of it"))
            continue
        cases = cases_of(subject, schemas, schema, options)
        found = [(c, d) for c, d in zip(cases, pool.map(lambda case: subject.send(*case), cases)) if d]
        subject.remove()
        sent, differences = sent + len(cases), differences + len(found)
        print("%-28s %6d cases, %5d differ" % (entry["name"], len(cases), len(found)), flush=True)
        groups = collections.defaultdict(list)
        for (place, value), (sort, want, got) in found:
            groups[re.sub(r"\.\d+", "[]", ".".join(map(str, place))), sort].append((value, want, got))
        for (place, sort), items in sorted(groups.items()):
            for value, want, got in items[: options.show]:
                print("   %s = %s  [%s, %d of them]" % (place, show(value, 120), sort, len(items)))
                print("      want %s\n      got  %s" % (show(want), show(got)))
    print("%d cases, %d differences" % (sent, differences))
    raise SystemExit(1 if differences else 0)


main()
