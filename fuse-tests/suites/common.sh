# What the suites share; sourced, not run. Sets `work`, a scratch directory that goes at the end
# with everything mounted below it.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$top/target}
suites=$target/suites
overfall=${OVERFALL_BINARY:-$target/debug/overfall}

die() { echo "$(basename "$0"): $*" >&2; exit 2; }

# install CRATE VERSION: puts the program of a suite under target/, if it isn't there.
install_suite() {
  [ -x "$suites/bin/$1" ] && return
  nice cargo install --quiet --locked --root "$suites" --target-dir "$suites/build" --version "$2" "$1"
}

# Other programs' mount namespaces must not keep a copy of what is mounted here, and what a test
# leaves must not reach the machine.
if [ "$(id -u)" = 0 ] && [ "${OVERFALL_OWN_MOUNTS:-}" != yes ]; then
  OVERFALL_OWN_MOUNTS=yes exec unshare --mount "$0" "$@"
fi

[ -x "$overfall" ] || die "$overfall is missing: run \`cargo build\`"
work=$(mktemp -d "${TMPDIR:-/tmp}/overfall-suite-XXXXXX")
chmod 755 "$work"

leave() {
  local mounted
  mounted=$(awk -v under="$work/" 'index($5, under) == 1 {print $5}' /proc/self/mountinfo | sort -r)
  for path in $mounted; do umount -l "$path" || true; done
  # What is still mounted must not be walked into.
  grep -q " $work/" /proc/self/mountinfo || rm -rf "$work"
}
trap leave EXIT

# mount_on CARRIER NAME [OPTION]: an empty writable overlay at $work/NAME/merged.
mount_on() {
  local dir=$work/$2 options
  mkdir -p "$dir"/{lower,upper,work,merged}
  options=lowerdir=$dir/lower,upperdir=$dir/upper,workdir=$dir/work${3:+,$3}
  case $1 in
  kernel) mount -t overlay overlay -o "$options" "$dir/merged" ;;
  fuse) "$overfall" mount --backend fuse -o "$options" "$dir/merged" ;;
  esac
}

# unmount_from CARRIER NAME
unmount_from() {
  case $1 in
  kernel) umount "$work/$2/merged" ;;
  fuse) "$overfall" umount "$work/$2/merged" ;;
  esac
}
