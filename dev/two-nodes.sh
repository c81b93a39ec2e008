#!/usr/bin/env bash
# Two nodes on one machine: node A runs `coxswain up`, node B joins it, each with a network, mounts and /run of its own, and a
# bridge between them. Runs a command on node A with `--kubeconfig FILE` appended. To be called inside dev/in-namespace.sh,
# with which everything ends.
#
#   dev/in-namespace.sh dev/two-nodes.sh COMMAND [ARGS…]
#
# The command finds how to cut node B off in $CUT_NODE_B and how to bring it back in $HEAL_NODE_B.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${COXSWAIN_NAMESPACE:-}" != 1 ]; then echo "$0 belongs inside dev/in-namespace.sh" >&2; exit 1; fi
binary=$(realpath "${COXSWAIN:-target/debug/coxswain}")
dir=$(mktemp -d /tmp/coxswain-two.XXXXXX)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf --one-file-system "$dir" 2>/dev/null || true' EXIT

# This namespace is node A; node B gets one of its own, kept by a sleeping process.
ip link add nodes address 0a:58:c0:a8:fc:01 type bridge
ip address add 192.168.252.1/24 dev nodes
ip link set nodes up
mkdir -p "$dir/b/run" "$dir/b/cni"
unshare --net --mount --propagation private -- bash -c '
    mount --bind "$1/b/run" /run
    mount --bind "$1/b/cni" /var/lib/cni
    mount --make-rshared /
    ip link set lo up
    echo $$ >"$1/b/pid"
    exec sleep infinity' node-b "$dir" &
for _ in $(seq 100); do [ -s "$dir/b/pid" ] && break; sleep 0.05; done
b=$(cat "$dir/b/pid")
on_b() { nsenter --target "$b" --net --mount -- "$@"; }
ip link add node-b type veth peer name eth0 netns "$b"
ip link set node-b master nodes up
on_b ip address add 192.168.252.2/24 dev eth0
on_b ip link set eth0 up
on_b ip route add default via 192.168.252.1

export CUT_NODE_B="ip link set node-b down"
export HEAL_NODE_B="ip link set node-b up"

wait_for() { # wait_for SECONDS WHAT COMMAND…
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $end ]; then
            echo "timed out waiting for $what" >&2
            tail -n 60 "$dir"/*.log >&2
            exit 1
        fi
        sleep 0.2
    done
}
# The images as a registry would have them, for pods that pull.
dev/registry.py target/images.tar 192.168.252.1 5000 >"$dir/registry.log" 2>&1 &
for node in a bdata; do
    mkdir -p "$dir/$node/containerd/certs.d/registry.k8s.io"
    printf 'server = "%s"\n[host."%s"]\n' http://192.168.252.1:5000 http://192.168.252.1:5000 \
        >"$dir/$node/containerd/certs.d/registry.k8s.io/hosts.toml"
done
"$binary" up --data-dir "$dir/a" --node-name node-a --node-ip 192.168.252.1 --image-archive target/images.tar \
    --eviction-hard "memory.available<50Mi" --image-gc-high-threshold 100 >"$dir/a.log" 2>&1 &
wait_for 60 "node A" grep -q '^ready' "$dir/a.log"
token=$("$binary" join-command --data-dir "$dir/a")
# shellcheck disable=SC2086
on_b "$binary" $token --data-dir "$dir/bdata" --node-name node-b --node-ip 192.168.252.2 \
    --image-archive "$PWD/target/images.tar" --eviction-hard "memory.available<50Mi" --image-gc-high-threshold 100 \
    >"$dir/b.log" 2>&1 &
kubectl=$(ls .cache/bin/kubectl-* | tail -n 1)
get_nodes() { "$kubectl" --kubeconfig "$dir/a/admin.kubeconfig" get nodes "$@"; }
# The taints of a node that is not ready yet outlast that by a moment.
ready_nodes() {
    [ "$(get_nodes --no-headers | grep -cw Ready)" = 2 ] && [ -z "$(get_nodes -o 'jsonpath={.items[*].spec.taints}')" ]
}
wait_for 60 "two ready nodes" ready_nodes
status=0
"$@" --kubeconfig "$dir/a/admin.kubeconfig" || status=$?
if [ "$status" -ne 0 ]; then tail -n 60 "$dir"/*.log >&2; fi
exit "$status"
