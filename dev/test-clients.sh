#!/usr/bin/env bash
# Drives a cluster with the clients that others wrote: every supported kubectl, the Python and JavaScript clients, the
# runtime of the kube crate, and Helm. One cluster serves them all, in namespaces of its own.
#
#   dev/test-clients.sh [SUITE]…    only these of: kubectl kube-runtime python javascript helm
#   CLIENTS_OF="--kubeconfig FILE" dev/test-clients.sh …   against a cluster that runs already (an upstream one, say)
#
# The newest and the oldest kubectl run every session, those between (CLIENTS_BETWEEN) the ones that depend most on the
# version: what is read, applied, rolled out and run.
set -euo pipefail
cd "$(dirname "$0")/.."
CLIENTS_BETWEEN=${CLIENTS_BETWEEN-"--only reading --only applying --only labelling --only running"}
JOBS=${CLIENTS_JOBS:-4}

suite() { # suite NAME COMMAND…: runs it, and adds up its closing line.
    local name=$1 log line start=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    log=$(mktemp)
    "$@" 2>&1 | tee "$log" || true
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$log" | tail -n 1)
    rm -f "$log"
    echo "($((SECONDS - start)) s)"
    if [ -z "$line" ]; then
        echo "$name ended without a closing line"
        failed=$((failed + 1))
        return
    fi
    passed=$((passed + ${line%% *}))
    failed=$((failed + $(sed 's/.*, \([0-9]*\) failed/\1/' <<<"$line")))
}

if [ "${1:-}" = --inside ]; then
    shift
    kubeconfig=${*: -1}
    suites=${CLIENT_SUITES:-kubectl kube-runtime python javascript helm}
    passed=0 failed=0
    for name in $suites; do
        case $name in
        kubectl)
            mapfile -t kubectls < <(ls .cache/bin/kubectl-1.* | sort -V)
            suite "kubectl, newest and oldest" target/debug/conformance --group kubectl --jobs "$JOBS" \
                --kubectl "${kubectls[-1]}" --kubectl "${kubectls[0]}" --kubeconfig "$kubeconfig"
            between=()
            for kubectl in "${kubectls[@]:1:${#kubectls[@]}-2}"; do between+=(--kubectl "$kubectl"); done
            # shellcheck disable=SC2086 # The options are several words.
            suite "kubectl, the versions between" target/debug/conformance --group kubectl --jobs "$JOBS" \
                $CLIENTS_BETWEEN "${between[@]}" --kubeconfig "$kubeconfig"
            ;;
        kube-runtime)
            suite "kube, the Rust client" target/debug/conformance --group kube-runtime \
                --kubectl .cache/bin/kubectl-1.36 --kubeconfig "$kubeconfig"
            ;;
        python)
            suite "kubernetes, the Python client" env PYTHONPATH=.cache/python \
                python3 conformance/clients/python_client.py --kubeconfig "$kubeconfig"
            ;;
        javascript)
            suite "@kubernetes/client-node, the JavaScript client" env NODE_PATH=.cache/js/node_modules \
                node conformance/clients/javascript_client.mjs --kubeconfig "$kubeconfig"
            ;;
        helm)
            suite "Helm" env PATH="$PWD/.cache/bin:$PATH" target/debug/conformance --group helm \
                --kubectl .cache/bin/kubectl-1.36 --kubeconfig "$kubeconfig"
            ;;
        *) echo "there is no suite $name" >&2; exit 2 ;;
        esac
    done
    printf '\nAll clients:\n%s passed, %s failed\n' "$passed" "$failed"
    [ "$failed" -eq 0 ]
    exit
fi

dev/install-clients.sh
cargo build --workspace
export CLIENT_SUITES="$*"
if [ -n "${CLIENTS_OF:-}" ]; then exec "$0" --inside $CLIENTS_OF; fi
if [ "$(id -u)" -ne 0 ]; then
    echo "A cluster in namespaces needs root: run this with sudo." >&2
    exit 1
fi
make --no-print-directory images
exec dev/in-namespace.sh dev/with-cluster.sh dev/test-clients.sh --inside
