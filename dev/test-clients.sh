#!/usr/bin/env bash
# Drives a cluster with the clients that others wrote: every supported kubectl, the Python and JavaScript clients, the
# runtime of the kube crate, and Helm. One cluster serves them all, in namespaces of its own.
#
#   dev/test-clients.sh [SUITE]…    only these of: kubectl nodes kube-runtime python javascript helm
#   CLIENTS_OF="--kubeconfig FILE" dev/test-clients.sh …   against a cluster that runs already (an upstream one, say)
#
# Sessions of kubectl run CLIENTS_JOBS at once, the other suites one after the other beside them. The session about nodes
# (cordon, drain, taint) disturbs all others: it comes last, by the newest and the oldest kubectl.
set -euo pipefail
cd "$(dirname "$0")/.."
JOBS=${CLIENTS_JOBS:-6}

# run NAME: one suite, whose closing line is `N passed, M failed`.
run() {
    local conformance=(target/debug/conformance --again --kubeconfig "$kubeconfig") versions=()
    mapfile -t kubectls < <(ls .cache/bin/kubectl-1.* | sort -V)
    case $1 in
    kubectl)
        for kubectl in "${kubectls[@]}"; do versions+=(--kubectl "$kubectl"); done
        "${conformance[@]}" --group kubectl --skip nodes --jobs "$JOBS" "${versions[@]}"
        ;;
    nodes)
        "${conformance[@]}" --group kubectl --only nodes --kubectl "${kubectls[-1]}" --kubectl "${kubectls[0]}"
        ;;
    kube-runtime) "${conformance[@]}" --group kube-runtime --kubectl "${kubectls[-1]}" ;;
    helm) PATH="$PWD/.cache/bin:$PATH" "${conformance[@]}" --group helm --kubectl "${kubectls[-1]}" ;;
    python) PYTHONPATH=.cache/python python3 conformance/clients/python_client.py --kubeconfig "$kubeconfig" ;;
    javascript)
        NODE_PATH=.cache/js/node_modules node conformance/clients/javascript_client.mjs --kubeconfig "$kubeconfig"
        ;;
    *) echo "there is no suite $1" ;;
    esac
}

# Whether a suite's client is there; dev/install-clients.sh has said so where it could not be fetched.
is_there() {
    case $1 in
    python) [ -d .cache/python/kubernetes ] ;;
    javascript) [ -d .cache/js/node_modules ] ;;
    helm) [ -x .cache/bin/helm ] ;;
    esac
}

# lane SUITE…: one after the other, each with a log and the seconds that it took.
lane() {
    local name start
    for name in "$@"; do
        start=$SECONDS
        run "$name" >"$logs/$name" 2>&1 || true
        printf '\n== %s (%d s)\n' "$name" $((SECONDS - start))
        cat "$logs/$name"
    done
}

if [ "${1:-}" = --inside ]; then
    kubeconfig=${*: -1}
    logs=$(mktemp -d)
    trap 'rm -rf "$logs"' EXIT
    beside=() first=() last=()
    for name in ${CLIENT_SUITES:-kubectl kube-runtime python javascript helm nodes}; do
        is_there "$name" || { echo "$name is left out: its client is not there"; continue; }
        case $name in
        kubectl) first+=("$name") ;;
        nodes) last+=("$name") ;;
        *) beside+=("$name") ;;
        esac
    done
    lane "${beside[@]}" &
    lane "${first[@]}"
    wait
    lane "${last[@]}"
    # Clients wait by clocks of their own, and many ran beside each other: what failed so gets one more try alone. The suite of
    # sessions has done that by itself.
    for name in "${beside[@]}"; do
        case $name in python | javascript) ;; *) continue ;; esac
        grep -qE '^[0-9]+ passed, 0 failed$' "$logs/$name" && continue
        printf '\n%s failed and runs once more\n' "$name"
        lane "$name"
    done
    passed=0 failed=0
    for name in "${first[@]}" "${beside[@]}" "${last[@]}"; do
        line=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$logs/$name" | tail -n 1 || true)
        if [ -z "$line" ]; then
            echo "$name ended without a closing line"
            failed=$((failed + 1))
            continue
        fi
        passed=$((passed + ${line%% *}))
        failed=$((failed + $(sed 's/.*, \([0-9]*\) failed/\1/' <<<"$line")))
    done
    printf '\nAll clients (%d s):\n%s passed, %s failed\n' "$SECONDS" "$passed" "$failed"
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
