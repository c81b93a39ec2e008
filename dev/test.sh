#!/usr/bin/env bash
# All tests: formatting, lints and unit tests first, then the suites that need a whole cluster, each in namespaces of its own.
#
#   dev/test.sh [unit|cluster]…     only these parts
set -euo pipefail
cd "$(dirname "$0")/.."
parts=${*:-unit cluster}
step() { printf '\n== %s\n' "$*"; }

if [[ $parts == *unit* ]]; then
    step "Formatting"
    cargo fmt --all --check
    if cargo deny --version >/dev/null 2>&1; then
        # Advisories need the network and change without us: `make deny` looks at them too.
        step "Licences and sources of what we build on"
        cargo deny --log-level error check licenses bans sources
    fi
    step "Unit tests"
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --workspace
    else
        cargo test --workspace --quiet
    fi
fi

if [[ $parts == *cluster* ]]; then
    step "Building the cluster and its images"
    cargo build --workspace
    make --no-print-directory images
    if [ "$(id -u)" -ne 0 ]; then
        echo "The cluster tests need root for network namespaces and containers: run them with sudo." >&2
        exit 1
    fi
    # The oldest and the newest kubectl at hand.
    mapfile -t versions < <(ls .cache/bin/kubectl-1.* | sort -V)
    kubectls=(--kubectl "$PWD/${versions[0]}")
    [ "${#versions[@]}" -lt 2 ] || kubectls+=(--kubectl "$PWD/${versions[-1]}")
    step "A Deployment, from kubectl to running containers behind a Service"
    dev/in-namespace.sh dev/with-cluster.sh target/debug/conformance --group first-light "${kubectls[@]}"
    step "kill -9 of the whole control plane under load, ${FAULT_ROUNDS:-50} times"
    dev/in-namespace.sh target/debug/conformance faults --coxswain "$PWD/target/debug/coxswain" \
        --images "$PWD/target/images.tar" --rounds "${FAULT_ROUNDS:-50}"
    step "API servers and their stores under ${STORE_FAULTS:-10} faults each"
    dev/in-namespace.sh target/debug/conformance faults --coxswain "$PWD/target/debug/coxswain" \
        --rounds "${STORE_FAULTS:-10}" --backend embedded --backend etcd --backend postgres
    step "Two nodes, one of them lost"
    dev/in-namespace.sh dev/two-nodes.sh "$PWD/target/debug/conformance" --group two-nodes "${kubectls[-2]}" "${kubectls[-1]}"
fi
