#!/usr/bin/env bash
# An upper that overfall's FUSE server wrote as a plain user on one kernel is mounted by the overlay of
# another, and by this machine's, and shows the same tree.
#
#   fuse-tests/kernels/cross.sh [WRITER [READER…]]      by default uml-5.10, and uml-6.1 6.12
#
# Exit codes as run.sh's. This machine's part takes root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/overfall-cross-XXXXXX")
chmod 755 "$work"
trap 'if mountpoint -q "$work/disk"; then umount "$work/disk"; fi; rm -rf "$work"' EXIT
export OVERFALL_KERNELS_DISK=$work/image
"$here/run.sh" "${1:-uml-5.10}" leave
readers=("${@:2}")
[ $# -gt 1 ] || readers=(uml-6.1 6.12)
for reader in "${readers[@]}"; do
  "$here/run.sh" "$reader" show
done
overfall=$(cd "$here/../.." && pwd)/target/debug/overfall
if ! setpriv --reuid 1000 --regid 1000 --clear-groups test -x "$overfall" -a -r "$here/show.sh"; then
  echo "skipped: a plain user of this machine can't reach $overfall"
elif [ "$(id -u)" = 0 ] && mkdir "$work/disk" && mount -o loop "$work/image" "$work/disk" 2>/dev/null; then
  echo "== this machine, $(uname -r)"
  export here overfall at=$work/disk/left
  sh "$here/show.sh"
else
  echo "skipped: the disk can't be mounted on this machine"
fi
