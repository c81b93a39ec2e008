#!/usr/bin/env bash
# Starts a cluster in a directory of its own, runs a command with KUBECONFIG set and `--kubeconfig FILE` appended, and ends the cluster.
# The cluster's log is shown if the command fails.
#
#   dev/with-cluster.sh COMMAND [ARGS…]
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(mktemp -d /tmp/coxswain-cluster.XXXXXX)
log=$dir/coxswain.log
"${COXSWAIN:-target/debug/coxswain}" up --data-dir "$dir/data" --image-archive target/images.tar \
    --eviction-hard "memory.available<50Mi" --image-gc-high-threshold 100 ${UP_FLAGS:-} >"$log" 2>&1 &
cluster=$!
finish() {
    kill -TERM "$cluster" 2>/dev/null || true
    wait "$cluster" 2>/dev/null || true
    rm -rf --one-file-system "$dir" 2>/dev/null || true
}
trap finish EXIT
for _ in $(seq 300); do
    grep -q '^ready' "$log" && break
    kill -0 "$cluster" 2>/dev/null || { cat "$log" >&2; echo "the cluster ended before it was ready" >&2; exit 1; }
    sleep 0.2
done
grep -q '^ready' "$log" || { cat "$log" >&2; echo "the cluster was not ready within 60 s" >&2; exit 1; }
export KUBECONFIG=$dir/data/admin.kubeconfig
status=0
"$@" --kubeconfig "$dir/data/admin.kubeconfig" || status=$?
if [ "$status" -ne 0 ]; then
    echo "--- the cluster's log, last 100 lines" >&2
    tail -n 100 "$log" >&2
fi
exit "$status"
