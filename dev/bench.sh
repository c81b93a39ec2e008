#!/usr/bin/env bash
# Runs the cases of bench/ against an API server that is started for it, alone, with a fresh data directory.
#
#   dev/bench.sh [ARGUMENTS OF bench…]     COXSWAIN and BENCH name other binaries, BENCH_DIR keeps the data directory
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${COXSWAIN:-target/release/coxswain}
bench=${BENCH:-target/release/bench}
[ -x "$binary" ] && [ -x "$bench" ] || cargo build --release -p coxswain -p bench

dir=${BENCH_DIR:-$(mktemp -d /var/tmp/coxswain-bench.XXXXXX)}
mkdir -p "$dir"
server=
finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    wait 2>/dev/null || true
    [ -n "${BENCH_DIR:-}" ] || rm -rf "$dir"
}
trap finish EXIT
# An authority and an administrator's certificate, as clusters have them.
if [ ! -e "$dir/admin.pem" ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=bench-ca \
        -keyout "$dir/ca.key" -out "$dir/ca.pem" 2>/dev/null
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /O=system:masters/CN=bench \
        -keyout "$dir/admin.key" -out "$dir/admin.csr" 2>/dev/null
    printf 'extendedKeyUsage=clientAuth\n' >"$dir/admin.ext"
    openssl x509 -req -days 30 -in "$dir/admin.csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -CAcreateserial \
        -extfile "$dir/admin.ext" -out "$dir/admin.pem" 2>/dev/null
    openssl genrsa -out "$dir/sa.key" 2048 2>/dev/null
fi
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$binary" kube-apiserver --data-dir "$dir/data" --cert-dir "$dir/certs" --bind-address 127.0.0.1 --secure-port "$port" \
    --authorization-mode Node,RBAC --service-cluster-ip-range 10.96.0.0/16 --client-ca-file "$dir/ca.pem" \
    --service-account-issuer https://kubernetes.default.svc --service-account-signing-key-file "$dir/sa.key" \
    --service-account-key-file "$dir/sa.key" >"$dir/server.log" 2>&1 &
server=$!
cat >"$dir/kubeconfig" <<EOF
apiVersion: v1
kind: Config
current-context: bench
clusters: [{name: bench, cluster: {server: "https://127.0.0.1:$port", insecure-skip-tls-verify: true}}]
contexts: [{name: bench, context: {cluster: bench, user: bench}}]
users: [{name: bench, user: {client-certificate: "$dir/admin.pem", client-key: "$dir/admin.key"}}]
EOF
for _ in $(seq 300); do
    curl -sk "https://127.0.0.1:$port/readyz" 2>/dev/null | grep -q '^ok' && break
    kill -0 "$server" 2>/dev/null || { cat "$dir/server.log" >&2; exit 1; }
    sleep 0.1
done
"$bench" --kubeconfig "$dir/kubeconfig" "$@"
