#!/usr/bin/env bash
# Replays what a whole upstream cluster of two nodes made of workloads against ours, where the recordings are at hand, prints the
# pass rate of each area, and fails when fewer checks pass than dev/golden-cluster.passed says. That number only rises.
#
#   GOLDEN_CLUSTER=DIR dev/golden-cluster.sh [ARGUMENTS OF cluster_golden.py replay…]
#
# Takes about four minutes; needs root. With arguments of its own (such as --only) the number is not compared.
set -euo pipefail
cd "$(dirname "$0")/.."
golden=$(realpath -m "${GOLDEN_CLUSTER:-../shared/golden-cluster}")
if [ ! -f "$golden/cluster_golden.py" ]; then echo "No recordings at $golden: nothing to replay."; exit 0; fi
if [ "$(id -u)" -ne 0 ]; then echo "Two nodes need root: run this with sudo." >&2; exit 1; fi
export COXSWAIN=${COXSWAIN:-target/debug/coxswain}
[ -x "$COXSWAIN" ] || cargo build -p coxswain
make --no-print-directory images
kubectl=$PWD/.cache/bin/kubectl-1.36
[ -x "$kubectl" ] || { echo "$kubectl is missing: run dev/install.sh" >&2; exit 1; }

dir=$(mktemp -d /tmp/coxswain-golden-cluster.XXXXXX)
trap 'rm -rf "$dir"' EXIT
# The exit status says whether everything passed; the number below is what counts.
dev/in-namespace.sh dev/two-nodes.sh sh -c '
    golden=$1 kubectl=$2 dir=$3; shift 3
    python3 "$golden/cluster_golden.py" replay "$golden/recordings" -j 4 --kubectl "$kubectl" \
        "$@" >"$dir/replay.log" 2>&1 || true' replay "$golden" "$kubectl" "$dir" "$@"
[ -z "${GOLDEN_LOG:-}" ] || cp "$dir/replay.log" "$GOLDEN_LOG"
grep -q passed "$dir/replay.log" || { tail -n 30 "$dir/replay.log"; exit 1; }
grep -E '^[a-z-]+ +[0-9]+ passed, ' "$dir/replay.log" |
    awk '{ printf "%-20s %4d of %4d  %5.1f %%\n", $1, $2, $2 + $4, 100 * $2 / ($2 + $4) }'
tail -n 1 "$dir/replay.log"
[ $# -eq 0 ] || exit 0
passed=$(sed -nE '$s/^([0-9]+) passed, .*/\1/p' "$dir/replay.log")
least=$(cat dev/golden-cluster.passed)
if [ "$passed" -lt "$least" ]; then echo "$passed checks pass; at least $least did before." >&2; exit 1; fi
echo "$passed checks pass, and at least $least must."
