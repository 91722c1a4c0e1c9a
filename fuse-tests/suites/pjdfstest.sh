#!/usr/bin/env bash
# pjdfstest on the kernel's overlay and on overfall's FUSE server, on this machine, as root:
#
#   fuse-tests/suites/pjdfstest.sh [PATTERN...]
#
# What fails on overfall must fail on the kernel's overlay, too; docs/CONFORMANCE.md has the list
# and the reasons. Patterns choose tests by a part of their names.
# KEEP=DIR keeps both logs there.
source "$(dirname "$0")/common.sh"

version=0.2.2
[ "$(id -u)" = 0 ] || { echo "skipped: pjdfstest needs root"; exit 0; }
install_suite pjdfstest "$version"

# Two accounts that every machine has, with groups of their own.
entry() { printf '["%s", "%s"]' "$1" "$(id -gn "$1")"; }
cat >"$work/pjdfstest.toml" <<END
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
secondary_fs = "$work/second"

[settings]
naptime = 0.05
allow_remount = true

[dummy_auth]
entries = [$(entry nobody), $(entry daemon)]
END
# The tests remount with mount(8), which would ask for a helper of our type of file system.
mkdir "$work/bin"
printf '#!/bin/sh\nexec %s -i "$@"\n' "$(command -v mount)" >"$work/bin/mount"
chmod 755 "$work/bin/mount"

mkdir "$work/second"
mount -t tmpfs tmpfs "$work/second"

# run_on CARRIER OPTION [PATTERN...]: leaves the names of what failed in $work/CARRIER.failed.
run_on() {
  local carrier=$1 option=$2 log=$work/$1.log name
  shift 2
  mount_on "$carrier" "$carrier" "$option"
  tests "$carrier" "$@" >"$log" || true
  : >"$log.alone"
  grep -q '^Summary' "$log" || { tail -n 20 "$log" >&2; die "$carrier: pjdfstest ended early"; }
  # One that fails keeps its files open, and no later one can remount: each gets another try alone.
  for name in $(sed -n 's/^\([a-z0-9_:]*\) .*FAILED$/\1/p' "$log" | sort); do
    tests "$carrier" -e "pjdfstest::tests::$name" >"$log.again" || true
    grep -q ', 1 passed' "$log.again" || { echo "$name"; cat "$log.again" >>"$log.alone"; }
  done >"$work/$carrier.failed"
  stat "$work/$carrier/merged" >/dev/null || die "$carrier: the mount is gone"
  unmount_from "$carrier" "$carrier"
  echo "$carrier: $(grep '^Summary' "$log"); alone $(wc -l <"$work/$carrier.failed") fail"
}

# tests CARRIER [PATTERN...]
tests() {
  local path=$work/$1/merged
  shift
  (cd / && PATH=$work/bin:$PATH RUST_BACKTRACE=0 NO_COLOR=1 "$suites/bin/pjdfstest" -c "$work/pjdfstest.toml" -p "$path" "$@") 2>&1
}

run_on kernel "" "$@"
run_on fuse allow_other "$@"
[ -z "${KEEP:-}" ] || { mkdir -p "$KEEP" && cp "$work"/*.{log,log.alone,failed} "$KEEP"; }

echo "fail on both: $(comm -12 "$work/kernel.failed" "$work/fuse.failed" | xargs)"
echo "fail on the kernel's overlay only: $(comm -23 "$work/kernel.failed" "$work/fuse.failed" | xargs)"
only=$(comm -13 "$work/kernel.failed" "$work/fuse.failed")
if [ -n "$only" ]; then
  echo "fail on overfall only:"
  for name in $only; do grep -A 1 "^$name " "$work/fuse.log.alone"; done
  exit 1
fi
echo "nothing fails on overfall alone"
