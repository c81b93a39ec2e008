#!/usr/bin/env python3
"""A read-only image registry over one OCI archive, for tests that pull images where no real registry is.

  dev/registry.py ARCHIVE ADDRESS PORT

It answers what a client pulls with: manifests by tag or digest, and blobs. Whatever the archive does not hold is unknown.
"""
import hashlib
import http.server
import json
import re
import sys
import tarfile


class Archive:
    def __init__(self, path):
        with tarfile.open(path) as tar:
            files = {m.name: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}
        self.blobs = {"sha256:" + n.rsplit("/", 1)[1]: b for n, b in files.items() if n.startswith("blobs/sha256/")}
        self.tags = {}
        self.types = {}
        for entry in json.loads(files["index.json"])["manifests"]:
            name = entry["annotations"]["io.containerd.image.name"]
            repository, tag = name.rsplit(":", 1)
            # Registries do not hear the host part of a name.
            self.tags[(repository.split("/", 1)[1], tag)] = entry["digest"]
            self.types[entry["digest"]] = entry["mediaType"]

    def find(self, path):
        """The digest, type and content of what a path names."""
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", path)
        if not match:
            return None
        name, kind, reference = match.groups()
        digest = reference if reference.startswith("sha256:") else self.tags.get((name, reference))
        if digest not in self.blobs or (kind == "manifests" and digest not in self.types):
            return None
        return digest, self.types.get(digest, "application/octet-stream"), self.blobs[digest]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    archive = None

    def answer(self, with_body):
        path = self.path.split("?")[0]
        if path in ("/v2", "/v2/"):
            return self.send(200, "application/json", b"{}", with_body)
        found = self.archive.find(path)
        if found is None:
            body = json.dumps({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}).encode()
            return self.send(404, "application/json", body, with_body)
        digest, kind, body = found
        return self.send(200, kind, body, with_body, digest)

    def send(self, status, kind, body, with_body, digest=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Docker-Content-Digest", digest or "sha256:" + hashlib.sha256(body).hexdigest())
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def do_GET(self):
        self.answer(True)

    def do_HEAD(self):
        self.answer(False)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    Handler.archive = Archive(sys.argv[1])
    http.server.ThreadingHTTPServer((sys.argv[2], int(sys.argv[3])), Handler).serve_forever()
