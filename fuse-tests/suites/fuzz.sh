#!/usr/bin/env bash
# The fuzz targets of fuse-tests/fuzz, FUZZ_SECONDS each (default 30):
#
#   fuse-tests/suites/fuzz.sh [TARGET...]
#
# With cargo-fuzz where it and a nightly compiler are installed, otherwise with what stands in for
# it: the same checks on random changes of the corpus. What is found stays in fuse-tests/fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
seconds=${FUZZ_SECONDS:-30}
export PATH=$target/suites/bin:$PATH

if ! cargo +nightly fuzz --version >/dev/null 2>&1; then
  echo "fuzz: no cargo-fuzz with a nightly compiler here; its stand-in instead"
  OVERFALL_FUZZ_SECONDS=$seconds exec cargo test --quiet --test fuzz_corpus -- --nocapture
fi

[ $# -gt 0 ] || set -- options formats
for name in "$@"; do
  # What it finds on the way goes to a directory of its own: the corpus in the repository is chosen.
  found=$target/fuzz-corpus/$name
  mkdir -p "$found"
  # No memory of ours is at stake in safe code, so no sanitizer: panics are what is looked for.
  nice cargo +nightly fuzz run --fuzz-dir fuse-tests/fuzz --target-dir "$target/fuzz" --sanitizer none \
    "$name" "$found" "fuse-tests/fuzz/corpus/$name" -- -max_total_time="$seconds" -max_len=4096 -verbosity=0 -print_final_stats=1
done
