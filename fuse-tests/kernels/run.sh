#!/usr/bin/env bash
# Boots a real kernel, runs our test binaries inside as root and as a plain user, and ends with
# their result.
#
#   fuse-tests/kernels/run.sh KERNEL [WHAT…]
#   fuse-tests/kernels/run.sh list
#
# KERNEL  uml-5.10, uml-6.1: Debian's user-mode-linux, a kernel that runs as a process
#         5.10, 6.1, 6.12, sid: Debian's cloud kernels in qemu, which emulates every instruction
# WHAT    facts, or leave and show (see cross.sh), or a test binary of Cargo.toml with arguments after a colon:
#           facts check 'fuse:user_fuse:: fuse::' 'differential:--count 20 --root'
#         Without it: everything that fits.
#
# The guest has a root file system of this machine's own packages, read-only (made once, by root),
# overfall at its place under target/debug, and an ext4 disk at /tmp.
#
# Exit code: 0 all passed; 1 a test failed; 2 bad arguments; 77 the kernel or what boots it can't
# be had here, with the reason on stderr.
#
# OVERFALL_KERNELS_TIME   seconds until the guest is ended (1200; qemu 5400)
# The console is kept in the cache, as KERNEL.log.
#
# OVERFALL_KERNELS_DISK   a file that keeps the guest's disk; used as it is when it exists
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
cache=${XDG_CACHE_HOME:-${HOME:-$repo/target}/.cache}/overfall/kernels

say() { echo "kernels: $*" >&2; }
skip() {
  say "skipped: $*"
  exit 77
}

# shellcheck source=fetch.sh
. "$here/fetch.sh"
# shellcheck source=root.sh
. "$here/root.sh"
# shellcheck source=boot.sh
. "$here/boot.sh"

usage() {
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}

# All of it is read before it begins: it may be edited while a guest runs.
main() {
  case ${1:-} in
    list) printf '%s\n' "${kernels[@]}"; exit 0 ;;
    '' | -h | --help) usage ;;
  esac
  kernel=$1
  shift
  if [[ " ${kernels[*]} " != *" $kernel "* ]]; then
    say "no kernel is called $kernel; there are: ${kernels[*]}"
    exit 2
  fi

  work=$(mktemp -d "${TMPDIR:-/tmp}/overfall-kernels-XXXXXX")
  # The guest doesn't outlive us.
  trap 'if [ -s "$work/guest" ]; then kill "$(cat "$work/guest")" 2>/dev/null || true; fi; rm -rf "$work"' EXIT
  trap 'exit 130' INT TERM

  needs_to_boot "$kernel"
  fetch_kernel "$kernel"
  say "$kernel: $(cat "$kernel_dir/packages"), Linux $(cat "$kernel_dir/version")"

  # The newest binary of each test, without what only a debugger reads.
  payload=$work/payload
  mkdir -p "$payload/bin" "$payload/target"
  [ $# -gt 0 ] || set -- facts check daemon run 'differential:--count 20' fuse
  for what in "$@"; do
    suite=${what%%:*}
    case $suite in facts | leave | show) continue ;; esac
    built=$(cd "$repo" && cargo test --locked --no-run --test "$suite" --message-format json 2>"$work/build" |
      sed -n 's/.*"executable":"\([^"]*\/deps\/'"$suite"'-[^"]*\)".*/\1/p' | tail -n 1) || true
    if [ -z "$built" ]; then
      cat "$work/build" >&2
      say "there is no test binary $suite"
      exit 2
    fi
    objcopy --strip-debug "$built" "$payload/bin/$suite"
  done
  (cd "$repo" && cargo build --locked --quiet)
  objcopy --strip-debug "$repo/target/debug/overfall" "$payload/target/overfall"
  cp "$here"/{guest,facts,tree,leave,show}.sh "$payload/"
  printf '%s\n' "$@" >"$payload/what"
  {
    printf 'repo=%q\n' "$repo"
    printf 'kernel=%q\n' "$kernel"
  } >"$payload/env"
  cp -r "$kernel_dir/modules" "$kernel_dir/insmod" "$payload/"
  make_root
  make_ext4 "$work/payload.img" "$(($(du -sm "$payload" | cut -f1) * 5 / 4 + 16))M" -d "$payload"
  disk=${OVERFALL_KERNELS_DISK:-$work/disk.img}
  [ -e "$disk" ] || make_ext4 "$disk" 4G -E lazy_itable_init=1,root_owner=0:0

  # In the background: a signal is heard at once.
  { case $kernel in
    uml-*) boot_uml ;;
    *) boot_qemu ;;
  esac | sed -u 's/\r$//' | tee "$work/log"; } &
  wait "$!" || true
  cp "$work/log" "$cache/$kernel.log"
  status=$(sed -n 's/^overfall-kernels: status \([0-9]*\)$/\1/p' "$work/log" | tail -n 1)
  if [ -z "$status" ]; then
    cat "$work/errors" >&2
    say "the guest ended without a result"
    exit 1
  fi
  exit "$status"
}

main "$@"
