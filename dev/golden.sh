#!/usr/bin/env bash
# Replays recorded answers of an upstream API server against ours, where the recordings are at hand, and fails when fewer
# steps pass than dev/golden.passed says. That number only rises.
#
#   GOLDEN=DIR dev/golden.sh [ARGUMENTS OF golden.py replay…]
set -euo pipefail
cd "$(dirname "$0")/.."
golden=${GOLDEN:-../shared/golden}
if [ ! -x "$golden/golden.py" ]; then echo "No recordings at $golden: nothing to replay."; exit 0; fi
binary=${COXSWAIN:-target/debug/coxswain}
[ -x "$binary" ] || cargo build -p coxswain

dir=$(mktemp -d /tmp/coxswain-golden.XXXXXX)
server=
finish() { [ -z "$server" ] || kill "$server" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$dir"; }
trap finish EXIT
printf 'golden-token,golden,golden,system:masters\n' >"$dir/tokens.csv"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
# The recorded server signs with RSA, which its discovery document shows.
openssl genrsa -out "$dir/sa.key" 2048 2>/dev/null
openssl rsa -in "$dir/sa.key" -pubout -out "$dir/sa.pub" 2>/dev/null
"$binary" kube-apiserver --data-dir "$dir/data" --cert-dir "$dir/certs" --bind-address 127.0.0.1 --secure-port "$port" \
    --authorization-mode Node,RBAC --service-cluster-ip-range 10.96.0.0/16 --allow-privileged \
    --token-auth-file "$dir/tokens.csv" --service-account-issuer https://kubernetes.default.svc.cluster.local \
    --service-account-signing-key-file "$dir/sa.key" --service-account-key-file "$dir/sa.pub" \
    >"$dir/server.log" 2>&1 &
server=$!
for _ in $(seq 150); do
    curl -sk "https://127.0.0.1:$port/readyz" 2>/dev/null | grep -q '^ok' && break
    kill -0 "$server" 2>/dev/null || { cat "$dir/server.log" >&2; exit 1; }
    sleep 0.1
done
curl -sk "https://127.0.0.1:$port/readyz" 2>/dev/null | grep -q '^ok' || { cat "$dir/server.log" >&2; exit 1; }
recordings=("$golden/recordings")
report=$dir/report.json
# The exit status says whether everything passed; the number below is what counts.
python3 "$golden/golden.py" replay --server "https://127.0.0.1:$port" --token golden-token --insecure --areas \
    --json "$report" "$@" "${recordings[@]}" >"$dir/replay.log" 2>&1 || true
tail -n 30 "$dir/replay.log"
[ -z "${GOLDEN_LOG:-}" ] || { cp "$dir/replay.log" "$GOLDEN_LOG"; cp "$dir/server.log" "$GOLDEN_LOG.server"; }
kill -0 "$server" 2>/dev/null || { echo "The server ended during the replay:"; tail -n 50 "$dir/server.log"; exit 1; }
[ $# -eq 0 ] || exit 0
passed=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["passed"])' "$report")
least=$(cat dev/golden.passed)
if [ "$passed" -lt "$least" ]; then echo "$passed steps pass; at least $least did before." >&2; exit 1; fi
echo "$passed steps pass, and at least $least must."
