#!/usr/bin/env bash
# Checks the codecs against objects as upstream wrote them, where these are at hand.
#
#   TESTDATA=DIR dev/codecs.sh
set -euo pipefail
cd "$(dirname "$0")/.."
data=${TESTDATA:-../shared/reference/api-testdata}
if [ ! -d "$data" ]; then echo "No objects at $data: nothing to check against."; exit 0; fi
cargo run -q -p coxswain-api --example round_trips -- "$data"
