#!/usr/bin/env python3
"""Makes schema.tsv and catalogue.tsv from facts about Kubernetes' API.

    generate.py schema    FIELDS_TSV NAMES_TSV      > schema.tsv
    generate.py catalogue DISCOVERY_DIR SCHEMA_TSV  > catalogue.tsv
    generate.py descriptions K8S_OPENAPI_SRC        > descriptions.gz
    generate.py features  FEATURE_GATES_YAML        > features.tsv

FIELDS_TSV and NAMES_TSV list every field and every named scalar of upstream's Go types; DISCOVERY_DIR holds the discovery
documents of a server with every built-in API turned on; K8S_OPENAPI_SRC is a version's folder in the source of the crate
k8s-openapi, such as src/v1_36; FEATURE_GATES_YAML is upstream's list of feature gates by release. The tables describe themselves
in their first lines.
"""
import base64, csv, gzip, hashlib, json, os, re, sys

GROUPS = {
    "core": "", "admission": "admission.k8s.io", "admissionregistration": "admissionregistration.k8s.io",
    "apidiscovery": "apidiscovery.k8s.io", "apiserverinternal": "internal.apiserver.k8s.io", "apps": "apps",
    "authentication": "authentication.k8s.io", "authorization": "authorization.k8s.io", "autoscaling": "autoscaling",
    "batch": "batch", "certificates": "certificates.k8s.io", "coordination": "coordination.k8s.io",
    "discovery": "discovery.k8s.io", "events": "events.k8s.io", "extensions": "extensions",
    "flowcontrol": "flowcontrol.apiserver.k8s.io", "imagepolicy": "imagepolicy.k8s.io", "networking": "networking.k8s.io",
    "node": "node.k8s.io", "policy": "policy", "rbac": "rbac.authorization.k8s.io", "resource": "resource.k8s.io",
    "scheduling": "scheduling.k8s.io", "storage": "storage.k8s.io", "storagemigration": "storagemigration.k8s.io",
    "meta": "meta.k8s.io", "apiextensions": "apiextensions.k8s.io", "apiregistration": "apiregistration.k8s.io",
    "metrics": "metrics.k8s.io", "custom_metrics": "custom.metrics.k8s.io", "external_metrics": "external.metrics.k8s.io",
    "runtime": "",
}
# Types with an encoding of their own, by the name that the table gives them.
SPECIAL = {
    "resource.Quantity": "Quantity", "intstr.IntOrString": "IntOrString", "runtime.RawExtension": "RawExtension",
    "meta.v1.Time": "Time", "meta.v1.MicroTime": "MicroTime", "meta.v1.Duration": "Duration", "meta.v1.FieldsV1": "FieldsV1",
    "apiextensions.v1.JSON": "JSON", "apiextensions.v1.JSONSchemaPropsOrBool": "JSONSchemaPropsOrBool",
    "apiextensions.v1.JSONSchemaPropsOrArray": "JSONSchemaPropsOrArray",
    "apiextensions.v1.JSONSchemaPropsOrStringArray": "JSONSchemaPropsOrStringArray",
    "time.Duration": "int64", "interface{}": "JSON", "[]byte": "bytes",
}
PLAIN = {"string", "bool", "int", "int32", "int64", "uint32", "uint64", "float64", "bytes"}
# Types that are made of another package's type but are not the same.
DISTINCT = {"admissionregistration.v1alpha1.MatchCondition": ("admissionregistration.v1", "MatchCondition")}
# Named lists that are a message of their own in protobuf.
WRAPPED = {"authentication.v1.ExtraValue", "authentication.v1beta1.ExtraValue", "authorization.v1.ExtraValue",
           "authorization.v1beta1.ExtraValue", "certificates.v1.ExtraValue", "certificates.v1beta1.ExtraValue", "meta.v1.Verbs"}


def short(package):
    """k8s.io/api/core/v1 -> core.v1"""
    parts = package.split("/")
    return parts[-1] if parts[-1] == "runtime" else f"{parts[-2]}.{parts[-1]}"


def schema(fields_path, names_path):
    structs, packages, named, constants = {}, {}, {}, {}
    for row in csv.DictReader(open(fields_path), delimiter="\t", quoting=csv.QUOTE_NONE):
        p = short(row["package"])
        packages[p] = row["package"]
        t = structs.setdefault((p, row["type"]), {"fields": [], "markers": ""})
        if row["go_type"] == "struct" and not row["json_name"] and not row["embedded_inline"]:
            t["markers"] = row["markers"]
        else:
            t["fields"].append(row)
    for row in csv.DictReader(open(names_path), delimiter="\t", quoting=csv.QUOTE_NONE):
        p = short(row["package"])
        packages.setdefault(p, row["package"])
        n = named.setdefault((p, row["type"]), {"underlying": "", "values": [], "enum": False})
        if row["underlying"]:
            n["underlying"] = row["underlying"]
            n["enum"] = "+enum" in (row["markers"] or "")
        if row["value_name"]:
            n["values"].append((row["value"], row["markers"] or ""))
            constants[(p, row["value_name"])] = row["value"]
    # `meta/v1` writes watch events by hand; they are a struct all the same.
    structs[("meta.v1", "WatchEvent")] = {"markers": "", "fields": [
        dict(json_name="type", go_type="string", embedded_inline="", omit="", proto_number="1", proto_label="opt", patch_strategy="", patch_merge_key="", markers=""),
        dict(json_name="object", go_type="runtime.RawExtension", embedded_inline="", omit="", proto_number="2", proto_label="opt", patch_strategy="", patch_merge_key="", markers="")]}

    for name, original in DISTINCT.items():
        structs[tuple(name.rsplit(".", 1))] = structs[original]
    # So are the short forms of group, version, kind and resource.
    for name, parts in {"GroupVersionKind": ("group", "version", "kind"), "GroupVersionResource": ("group", "version", "resource"),
                        "GroupKind": ("group", "kind"), "GroupResource": ("group", "resource"), "GroupVersion": ("group", "version")}.items():
        structs[("meta.v1", name)] = {"markers": "", "fields": [
            dict(json_name=part, go_type="string", embedded_inline="", omit="", proto_number=str(i + 1), proto_label="opt", patch_strategy="",
                 patch_merge_key="", markers="") for i, part in enumerate(parts)]}

    def known(p, name):
        return (p, name) in structs or (p, name) in named or f"{p}.{name}" in SPECIAL

    def qualify(package, name):
        """The name of a Go type as the table has it: `PodSpec` in package core.v1 is `core.v1.PodSpec`."""
        if name in PLAIN:
            return name
        if name in SPECIAL:
            return SPECIAL[name]
        if "." not in name:
            full = f"{package}.{name}"
            if full in SPECIAL:
                return SPECIAL[full]
            if full in DISTINCT:
                return full
            if (package, name) not in structs and "." in named.get((package, name), {"underlying": ""})["underlying"]:
                # An alias of another package's type is that type.
                under = named[(package, name)]["underlying"]
                if not under.startswith(("map", "[")):
                    return qualify(package, under)
            if known(package, name):
                return full
            raise SystemExit(f"unknown type {name} in {package}")
        qualifier, base = name.split(".")
        if qualifier == "types":
            return "types." + base
        group, version = package.rsplit(".", 1) if "." in package else (package, "")
        candidates = {"metav1": ["meta.v1"], "v1": [f"{group}.v1", "core.v1", "meta.v1"], "apiv1": ["core.v1"], "corev1": ["core.v1"],
                      "core": ["core.v1"]}.get(qualifier)
        if candidates is None:
            m = re.fullmatch(r"([a-z]+?)(v\d+(?:(?:alpha|beta)\d+)?)", qualifier)
            candidates = [f"{m[1]}.{m[2]}"] if m else []
        for c in candidates:
            if known(c, base):
                full = f"{c}.{base}"
                return SPECIAL.get(full, full)
        raise SystemExit(f"unknown type {name} in {package}")

    def typ(package, text):
        if text == "[]byte":
            return "bytes"
        if text.startswith("[]"):
            return "[]" + typ(package, text[2:])
        if text.startswith("*"):
            return "*" + typ(package, text[1:])
        m = re.fullmatch(r"map\[([\w.]+)\](.*)", text)
        if m:
            return f"map[{typ(package, m[1])}]" + typ(package, m[2])
        return qualify(package, text)

    def markers_of(text):
        return [m.strip() for m in re.split(r" ; ", text or "") if m.strip()]

    def field(package, owner, row, via):
        markers = markers_of(row["markers"])
        one = lambda key: next((m[len(key) + 1:] for m in markers if m.startswith(key + "=")), None)
        gotype = typ(package, row["go_type"])
        attrs = []
        if "omitempty" in row["omit"]:
            attrs.append("e")
        if "omitzero" in row["omit"]:
            attrs.append("z")
        required = "+required" in markers or "+k8s:required" in markers
        optional = "+optional" in markers or "+k8s:optional" in markers
        if required or (not optional and not row["omit"]):
            attrs.append("r")
        if optional:
            attrs.append("o")
        keys = [m.split("=", 1)[1] for m in markers if m.startswith("+listMapKey=")]
        if one("+listType") == "set":
            attrs.append("set")
        elif one("+listType") == "map" and keys:
            attrs.append("keys=" + ",".join(keys))
        elif one("+listType") == "atomic":
            attrs.append("list")
        # Defaults are for none and not for an empty one, and a refusal shows which it is.
        if (package, owner, row["json_name"]) in [("autoscaling.v2", "HPAScalingRules", "policies"), ("core.v1", "PersistentVolumeSpec", "capacity")]:
            attrs.append("keep")
        if one("+mapType") == "atomic" or one("+structType") == "atomic":
            attrs.append("atomic")
        for s in (row["patch_strategy"] or "").split(","):
            if s:
                attrs.append(s)
        if row["patch_merge_key"]:
            attrs.append("by=" + row["patch_merge_key"])
        if one("+default") is not None:
            d = one("+default")
            m = re.fullmatch(r"ref\((?:.*\.)?(\w+)\)", d)
            d = constants[(package, m[1])] if m else d
            attrs.append("d=" + json.dumps(json.loads(d), separators=(",", ":")))
        number = row["proto_number"] or "-"
        # The wire type follows from the type: the tags of a few fields are wrong about it.
        if number != "-" and any(gotype.lstrip("*") == w for w in WRAPPED):
            attrs.append("wrapped")
        if via and number != "-":
            number = "/".join(via) + "/" + number
        skip = ("+optional", "+required", "+listType", "+listMapKey", "+mapType", "+structType", "+patch", "+default=", "+-----", "+k8s:optional",
                "+k8s:required", "+protobuf", "+k8s:conversion-gen", "+k8s:listType", "+k8s:listMapKey", "+genclient")
        rest = [m for m in markers if m.startswith("+") and (not m.startswith(skip) or m.endswith("Type=granular"))]
        return "\t".join([row["json_name"], gotype, number, " ".join(attrs), " ; ".join(rest)]).rstrip("\t")

    def flatten(package, name, via=()):
        for row in structs[(package, name)]["fields"]:
            if row["embedded_inline"]:
                q = qualify(package, row["go_type"].lstrip("*"))
                p, n = q.rsplit(".", 1)
                if n == "TypeMeta" and p == "meta.v1":
                    # The envelope carries the kind in protobuf, except where the tag says otherwise.
                    for f in ("kind", "apiVersion"):
                        yield f"{f}\tstring\t-\te o"
                    continue
                inner = via + ((row["proto_number"],) if row["proto_number"] else ())
                yield from flatten(p, n, inner)
            elif row["json_name"] and row["json_name"] != "-":
                yield field(package, name, row, via)

    out = []
    w = out.append
    w("# Every type of Kubernetes v1.36's API. Made by generate.py; see api/src/schema/table.rs for the reader.")
    w("# package SHORT OPENAPI_PREFIX GROUP VERSION; then its named scalars, lists and maps (= NAME UNDERLYING [enum] VALUES) and its")
    w("# structs (NAME [kind] [atomic] MARKERS), each followed by its fields, tab-separated, in the order of encoding:")
    w("#   json name, Go type, protobuf number (OUTER/INNER where the field sits in an embedded message), attributes, markers.")
    w("# Attributes: e omitempty, z omitzero, r required, o +optional, list/set/keys=A,B list type, atomic, merge/replace/retainKeys")
    w("# and by=KEY for strategic merge, d=JSON default, wrapped for a list that protobuf wraps in a message,")
    w("# keep for a list or map of which an empty one is not the same as none as long as defaults are not set.")
    for p in sorted(packages):
        path = packages[p]
        group, version = p.rsplit(".", 1) if "." in p else (p, "")
        if p == "runtime":
            continue
        w(f"package\t{p}\tio.k8s.{path.replace('/', '.')}\t{GROUPS[group]}\t{version}")
        for (q, name), n in sorted(named.items()):
            if q != p or not n["underlying"] or f"{p}.{name}" in SPECIAL:
                continue
            under = n["underlying"]
            if under.startswith("func") or under.startswith("struct") or under.startswith("interface"):
                continue
            try:
                u = typ(p, under)
            except SystemExit:
                continue
            if (p, name) in structs or (u not in PLAIN and not u.startswith(("map", "["))) :
                continue
            values = [json.loads(v) for v, m in n["values"] if v.startswith('"')] if u == "string" else []
            if not n["enum"]:
                values = []
            w("= " + "\t".join([name, u] + (["enum"] if n["enum"] else []) + values))
        for (q, name), t in sorted(structs.items()):
            if q != p or f"{p}.{name}" in SPECIAL or name == "TypeMeta" or name == "Patch":
                continue
            kind = any(f["embedded_inline"] and f["go_type"].split(".")[-1] == "TypeMeta" for f in t["fields"])
            ms = markers_of(t["markers"])
            head = [name] + (["kind"] if kind else []) + (["atomic"] if "+structType=atomic" in ms else [])
            head += [m for m in ms if m.startswith("+union") or m.startswith("+k8s:supports")]
            w(" ".join(head))
            for line in flatten(p, name):
                w("\t" + line)
    sys.stdout.write("\n".join(out) + "\n")


def catalogue(discovery, schema_path):
    load = lambda f: json.load(open(os.path.join(discovery, f)))
    kinds, package_of = set(), {}
    for line in open(schema_path):
        if line.startswith("package\t"):
            _, p, prefix, group, version = line.rstrip("\n").split("\t")
        elif line[0] not in "#=\t\n":
            kinds.add((group, version, line.split()[0]))
    # Upstream serves no alpha and no beta version unless asked to.
    on = lambda version: "off" if "alpha" in version or "beta" in version else "on"
    groups = [("", ["v1"], "v1")]
    for g in load("apis.json")["groups"]:
        if g["name"].endswith("openshift.io"):
            continue
        groups.append((g["name"], [v["version"] for v in g["versions"]], g["preferredVersion"]["version"]))
    docs = {}
    for f in sorted(os.listdir(discovery)):
        m = re.fullmatch(r"apis?__(?:(.+)__)?(v[^_]+)\.json", f)
        if m and "openshift.io" not in f:
            docs[(m[1] or "", m[2])] = load(f)["resources"]
    # The hash is one of the stored group, version and kind: trying the known ones tells which is stored. (That of
    # CustomResourceDefinitions names a version that is served no more; they have one version only.)
    stored = {}
    for g, v, k in kinds:
        digest = base64.b64encode(hashlib.sha256(f"{g}/{v}/{k}".encode()).digest()[:8]).decode()
        stored[digest] = (g, v)
    print("# Every resource of Kubernetes v1.36's API, in the order of discovery. Made by generate.py; see api/src/catalogue/table.rs.")
    print("# group NAME PREFERRED_VERSION; version NAME on|off (served by default); then resources, tab-separated:")
    print("#   plural, singular, kind, n(amespaced)|c(luster), verbs, short names, categories, storage hash, storage group/version")
    print("# and, indented, their subresources: name, kind as group/version/kind, verbs.")
    known_versions = {}
    for (g, v) in docs:
        known_versions.setdefault(g, []).append(v)
    for name, versions, preferred in groups:
        print(f"group\t{name}\t{preferred}")
        extra = [v for v in known_versions.get(name, []) if v not in versions]
        for version in versions + extra:
            if (name, version) not in docs:
                continue
            print(f"version\t{version}\t{on(version)}")
            rs = docs[(name, version)]
            for r in rs:
                if "/" in r["name"]:
                    continue
                h = r.get("storageVersionHash", "")
                at = stored.get(h, (name, version))
                print("\t".join([r["name"], r["singularName"], r["kind"], "n" if r["namespaced"] else "c", ",".join(r["verbs"]),
                                 ",".join(r.get("shortNames", [])), ",".join(r.get("categories", [])), h,
                                 "" if at == (name, version) else "/".join(at)]).rstrip("\t"))
                for s in rs:
                    if s["name"].startswith(r["name"] + "/"):
                        print("\t" + "\t".join([s["name"].split("/", 1)[1],
                                                f"{s.get('group', name)}/{s.get('version', version)}/{s['kind']}", ",".join(s["verbs"])]))


# The crate describes no query parameters but those of deletions.
PARAMETERS = {
    "apimachinery.pkg.apis.meta.v1.ListOptions": {
        "labelSelector": "Restricts the list to objects whose labels match this selector. Without it every object is returned.",
        "fieldSelector": "Restricts the list to objects whose fields match this selector. Without it every object is returned.",
        "watch": "Streams changes of the objects as added, modified and deleted events instead of listing them. Give a resourceVersion to start from.",
        "allowWatchBookmarks": "Allows BOOKMARK events in a watch, which tell how far the server has come. Clients must not rely on them coming at any interval.",
        "resourceVersion": "Constrains which versions of the objects a list may be served from, or where a watch starts. Unset means the most recent.",
        "resourceVersionMatch": "Says how resourceVersion is applied to a list: NotOlderThan or Exact. It may be set only together with resourceVersion.",
        "timeoutSeconds": "Limits how long a list or watch may take, whatever happens.",
        "limit": "The largest number of objects to return. If there are more, metadata.continue of the list holds what asks for the next ones. A server may return fewer. It does not apply to watches.",
        "continue": "Asks for the next part of a list that had a limit, by the value of metadata.continue of the last part; all other parameters must be the same. After some minutes the server may answer that the value has expired.",
        "sendInitialEvents": "Begins a watch with an added event for each object there is, followed by a bookmark with the annotation k8s.io/initial-events-end. It needs resourceVersionMatch to be NotOlderThan.",
        "shardSelector": "Restricts a list or watch to one shard of the objects.",
    },
    "apimachinery.pkg.apis.meta.v1.GetOptions": {
        "resourceVersion": "Constrains which version of the object may be returned. Unset means the most recent.",
    },
    "apimachinery.pkg.apis.meta.v1.CreateOptions": {
        "dryRun": "Says that nothing shall be stored. The only valid value is All: every stage of the request is processed.",
        "fieldManager": "The name of the one who makes this change, for field ownership. At most 128 printable characters.",
        "fieldValidation": "What to do about unknown and duplicate fields: Ignore drops them, Warn (the default) drops them with a warning, Strict refuses the request.",
    },
    "apimachinery.pkg.apis.meta.v1.WatchEvent": {
        "object": "What was added, modified (its new state) or deleted (its last state); for a bookmark an object with a resourceVersion only; for an error mostly a Status.",
    },
    "api.core.v1.PodLogOptions": {
        "container": "The container whose log to stream. It may be left out if the pod has one container only.",
        "follow": "Goes on streaming as the log grows.",
        "previous": "Returns the log of the container's previous instance, which has terminated.",
        "sinceSeconds": "How far back in time the log begins, in seconds from now.",
        "sinceTime": "The time at which the log begins.",
        "timestamps": "Begins every line with the RFC 3339 time at which it was written.",
        "tailLines": "How many lines of the log's end to show.",
        "limitBytes": "How many bytes to return at most.",
        "insecureSkipTLSVerifyBackend": "Does not verify the certificate of the kubelet that the log comes from.",
        "stream": "Which stream to return: All, Stdout or Stderr.",
    },
    "api.core.v1.PodExecOptions": {
        "stdin": "Redirects the call's input to the command.", "stdout": "Redirects the command's output to the call.",
        "stderr": "Redirects the command's error output to the call.", "tty": "Gives the command a terminal.",
        "container": "The container to run the command in. It may be left out if the pod has one container only.",
        "command": "The command to run and its arguments, not run in a shell.",
    },
    "api.core.v1.PodAttachOptions": {
        "stdin": "Redirects the call's input to the container.", "stdout": "Redirects the container's output to the call.",
        "stderr": "Redirects the container's error output to the call.", "tty": "Says that the container has a terminal.",
        "container": "The container to attach to. It may be left out if the pod has one container only.",
    },
    "api.core.v1.PodPortForwardOptions": {"ports": "The ports to forward. Needed with WebSockets."},
    "api.core.v1.PodProxyOptions": {"path": "The path of the request to the pod."},
    "api.core.v1.ServiceProxyOptions": {"path": "The part of the URL after the service, its port and scheme."},
    "api.core.v1.NodeProxyOptions": {"path": "The path of the request to the node."},
}
PARAMETERS["apimachinery.pkg.apis.meta.v1.UpdateOptions"] = PARAMETERS["apimachinery.pkg.apis.meta.v1.CreateOptions"]
PARAMETERS["apimachinery.pkg.apis.meta.v1.PatchOptions"] = dict(
    PARAMETERS["apimachinery.pkg.apis.meta.v1.CreateOptions"],
    force="Takes over fields that other managers of an applied object own. It applies to apply patches only.")


def descriptions(source):
    """Lines of text, each said once; then an empty line; then types and, indented, their fields, each with the number of its text."""
    types = {}
    for folder, _, files in os.walk(source):
        for f in files:
            text = open(os.path.join(folder, f)).read()
            named = re.match(r"// Generated from definition io\.k8s\.(\S+)", text)
            schema = re.search(r"crate::schemars::json_schema!\(\{\n(.*?)\n        \}\)", text, re.S)
            if not named or not schema:
                continue
            this = types.setdefault(named[1], {"": None})
            field = None
            for line in schema[1].split("\n"):
                if m := re.match(r'^ {16}"(.+)": (\{|\(\{)$', line):
                    field = m[1]
                elif m := re.match(r'^ {20}schema_obj\.ensure_object\(\)\.insert\("description"\.into\(\), (".*")\.into\(\)\);$', line):
                    this[field] = json.loads(m[1])
                elif m := re.match(r'^ {12}"description": (".*"),$', line):
                    this[""] = json.loads(m[1])
                elif m := re.match(r'^ {20}"description": (".*"),$', line):
                    this[field] = json.loads(m[1])
    for name, fields in PARAMETERS.items():
        types.setdefault(name, {"": None}).update(fields)
    texts = sorted({t for fields in types.values() for t in fields.values() if t})
    number = {t: i for i, t in enumerate(texts)}
    lines = [json.dumps(t, ensure_ascii=False) for t in texts] + [""]
    for name, fields in sorted(types.items()):
        lines.append(name + (f" {number[fields['']]}" if fields[""] else ""))
        lines += [f"\t{field} {number[text]}" for field, text in sorted(fields.items()) if field]
    sys.stdout.buffer.write(gzip.compress("\n".join(lines).encode() + b"\n", 9, mtime=0))


# Gates that upstream lets nobody open while these are shut.
NEEDS = {
    "AuthorizeNodeWithSelectors": "AuthorizeWithSelectors", "ClusterTrustBundleProjection": "ClusterTrustBundle",
    "DRADeviceBindingConditions": "DRAResourceClaimDeviceStatus", "DRADeviceTaintRules": "DRADeviceTaints",
    "DRAResourceClaimGranularStatusAuthorization": "DRAResourceClaimDeviceStatus", "DRAWorkloadResourceClaims": "GenericWorkload",
    "DeclarativeValidationBeta": "DeclarativeValidation", "ExtendWebSocketsToKubelet": "NodeDeclaredFeatures",
    "GangScheduling": "GenericWorkload", "GracefulNodeShutdownBasedOnPodPriority": "GracefulNodeShutdown",
    "ImageVolumeWithDigest": "ImageVolume",
    "InPlacePodLevelResourcesVerticalScaling": "InPlacePodVerticalScaling PodLevelResources NodeDeclaredFeatures",
    "InPlacePodVerticalScalingInitContainers": "InPlacePodVerticalScaling NodeDeclaredFeatures",
    "MatchLabelKeysInPodTopologySpreadSelectorMerge": "MatchLabelKeysInPodTopologySpread",
    "PodLevelResourceManagers": "PodLevelResources", "ResourceHealthStatusMessage": "ResourceHealthStatus",
    "RestartAllContainersOnContainerExits": "ContainerRestartRules NodeDeclaredFeatures",
    "StorageVersionAPI": "APIServerIdentity",
    "StructuredAuthenticationConfigurationEgressSelector": "StructuredAuthenticationConfiguration",
    "StructuredAuthenticationConfigurationJWKSMetrics": "StructuredAuthenticationConfiguration",
    "TopologyAwareWorkloadScheduling": "GenericWorkload", "UnknownVersionInteroperabilityProxy": "APIServerIdentity",
    "WorkloadAwarePreemption": "GangScheduling", "WorkloadWithJob": "GenericWorkload",
}


def features(path):
    print("# Every feature gate of Kubernetes v1.36, sorted. Made by generate.py; see api/src/features.rs.")
    print("# name, stage, whether it is on by default, \"locked\" where it cannot be changed, the gates that it needs.")
    for block in re.split(r"^- name: ", open(path).read(), flags=re.M)[1:]:
        specs = re.findall(r"- default: (\w+)\n\s+lockToDefault: (\w+)\n\s+preRelease: (\w+)\n\s+version: \"1\.(\d+)\"", block)
        on, locked, stage, _ = [s for s in specs if int(s[3]) <= 36][-1]
        name = block.split()[0]
        print("\t".join([name, stage, on, "locked" if locked == "true" else "", NEEDS.get(name, "")]))


if __name__ == "__main__":
    {"schema": schema, "catalogue": catalogue, "descriptions": descriptions, "features": features}[sys.argv[1]](*sys.argv[2:])
