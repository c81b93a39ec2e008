#!/usr/bin/env bash
# Searches for inputs that break a law, guided by coverage (libFuzzer; needs a C++ compiler).
#
#   dev/fuzz.sh [-t SECONDS] [TARGET]…     all targets, 600 seconds each, unless told otherwise
#
# With FUZZ_FEATURES= only the targets of crate `api`, which are built in a minute; by default those of the server too.
#
# What was found is left in target/fuzz/found; mend the cause and add the input to fuzz/corpus/TARGET/, which `make test` draws.
set -uo pipefail
cd "$(dirname "$0")/.."
seconds=600
if [ "${1:-}" = -t ]; then seconds=$2; shift 2; fi
host=$(rustc -vV | sed -n 's/^host: //p')
# The same dependencies as everything else.
cp Cargo.lock fuzz/libfuzzer/Cargo.lock
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares" \
    cargo build --release --features "${FUZZ_FEATURES-server,kubelet}" --manifest-path fuzz/libfuzzer/Cargo.toml --target "$host" --target-dir target/fuzz || exit 1
engine=target/fuzz/$host/release/coxswain-libfuzzer
targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(FUZZ_LIST=1 "$engine" 2>/dev/null)
failed=0
for target in "${targets[@]}"; do
    work=target/fuzz/work/$target found=target/fuzz/found/$target
    mkdir -p "$work" "$found"
    # The seeds of the table, and what was found before.
    FUZZ_TARGET=$target FUZZ_SEEDS=$work "$engine" >/dev/null 2>&1
    [ -d "fuzz/corpus/$target" ] && cp "fuzz/corpus/$target"/* "$work"/
    if FUZZ_TARGET=$target "$engine" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2500 -max_len=8192 -print_final_stats=1 \
        -artifact_prefix="$found/" "$work" >"target/fuzz/$target.log" 2>&1; then
        echo "$target: nothing found in $seconds s ($(grep -o 'number_of_executed_units: [0-9]*' "target/fuzz/$target.log" | grep -o '[0-9]*$') inputs)"
    else
        failed=1
        echo "$target: a law is broken, see target/fuzz/$target.log"
        grep -aE 'panicked|ERROR|Test unit' -A2 "target/fuzz/$target.log" | head -8
    fi
done
exit $failed
