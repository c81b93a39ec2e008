#!/usr/bin/env bash
# Puts every sample of upstream's API test data (k8s.io/api/testdata/HEAD, NAME.pb beside NAME.json) into an etcd under
# upstream's keys, and has our server serve it.
#
#   dev/handover.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
COXSWAIN_API_SAMPLES=$(realpath "${1:?the folder with the samples}")
export COXSWAIN_API_SAMPLES
exec cargo test -p coxswain-apiserver --test handover samples_of_every_kind -- --nocapture
