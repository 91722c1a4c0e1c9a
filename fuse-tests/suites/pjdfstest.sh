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
if [ "${IN_OWN_MOUNTS:-}" != yes ]; then
  # Tests remount read-only; and nothing that is mounted reaches the machine.
  leave
  IN_OWN_MOUNTS=yes exec unshare --mount "$0" "$@"
fi
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
  local carrier=$1 option=$2 log=$work/$1.log
  shift 2
  mount_on "$carrier" "$carrier" "$option"
  (cd / && PATH=$work/bin:$PATH RUST_BACKTRACE=0 "$suites/bin/pjdfstest" -c "$work/pjdfstest.toml" -p "$work/$carrier/merged" -- "$@") >"$log" 2>&1 || true
  stat "$work/$carrier/merged" >/dev/null || die "$carrier: the mount is gone"
  unmount_from "$carrier" "$carrier"
  sed -i 's/\x1b\[[0-9;]*m//g' "$log"
  grep -q '^Summary' "$log" || { tail -n 20 "$log" >&2; die "$carrier: pjdfstest ended early"; }
  sed -n 's/^\([a-z0-9_:]*\) .*FAILED$/\1/p' "$log" | sort >"$work/$carrier.failed"
  echo "$carrier: $(grep '^Summary' "$log")"
}

run_on kernel "" "$@"
run_on fuse allow_other "$@"
[ -z "${KEEP:-}" ] || { mkdir -p "$KEEP" && cp "$work"/{kernel,fuse}.{log,failed} "$KEEP"; }

echo "fail on both: $(comm -12 "$work/kernel.failed" "$work/fuse.failed" | xargs)"
echo "fail on the kernel's overlay only: $(comm -23 "$work/kernel.failed" "$work/fuse.failed" | xargs)"
only=$(comm -13 "$work/kernel.failed" "$work/fuse.failed")
if [ -n "$only" ]; then
  echo "fail on overfall only:"
  for name in $only; do grep -A 1 "^$name " "$work/fuse.log"; done
  exit 1
fi
echo "nothing fails on overfall alone"
