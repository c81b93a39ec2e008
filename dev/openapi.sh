#!/usr/bin/env bash
# Compares the OpenAPI documents that our API server serves with those of upstream's source, where these are at hand, and
# fails when there is a difference.
#
#   OPENAPI=DIR dev/openapi.sh [ARGUMENTS OF conformance openapi…]
#
# Upstream makes its documents with every API and alpha feature on, with the gate OpenAPIEnums off and with the log handler,
# none of which is so in a server as it is run: so enums, CBOR and /logs are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
reference=${OPENAPI:-../shared/reference/openapi}
if [ ! -f "$reference/swagger.json" ]; then echo "No documents at $reference: nothing to compare with."; exit 0; fi
[ -n "${COXSWAIN:-}" ] || cargo build -q -p coxswain
[ -n "${CONFORMANCE:-}" ] || cargo build -q -p conformance
binary=${COXSWAIN:-target/debug/coxswain}

dir=$(mktemp -d /tmp/coxswain-openapi.XXXXXX)
server=
finish() { [ -z "$server" ] || kill "$server" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$dir"; }
trap finish EXIT
printf 'openapi-token,admin,admin,system:masters\n' >"$dir/tokens.csv"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$binary" kube-apiserver --data-dir "$dir/data" --cert-dir "$dir/certs" --bind-address 127.0.0.1 --secure-port "$port" \
    --token-auth-file "$dir/tokens.csv" --runtime-config api/all=true --feature-gates AllAlpha=true,AllBeta=true \
    >"$dir/server.log" 2>&1 &
server=$!
for _ in $(seq 150); do
    curl -sk "https://127.0.0.1:$port/readyz" 2>/dev/null | grep -q '^ok' && break
    kill -0 "$server" 2>/dev/null || { cat "$dir/server.log" >&2; exit 1; }
    sleep 0.1
done
cat >"$dir/kubeconfig" <<CONFIG
{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
 "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:$port", "insecure-skip-tls-verify": true}}],
 "users": [{"name": "c", "user": {"token": "openapi-token"}}]}
CONFIG
"${CONFORMANCE:-target/debug/conformance}" openapi --kubeconfig "$dir/kubeconfig" --theirs "$reference" --without-enums \
    --skip /logs --skip /.well-known "$@"
