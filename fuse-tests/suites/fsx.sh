#!/usr/bin/env bash
# fsx on overfall's FUSE server: random reads, writes, mappings, truncations, holes and copies of
# one file, each read compared with what it must be.
#
#   FSX_OPS=20000 FSX_SEED=1 fuse-tests/suites/fsx.sh
#
# FSX_OPS operations altogether (default 100000), shared among four runs: a new file, a file that
# starts in a lower layer, a file that is opened with O_DIRECT, and one with large sparse ranges.
# A run that fails is repeated with the seed that it prints.
source "$(dirname "$0")/common.sh"

version=0.3.2
ops=$(( ${FSX_OPS:-100000} / 4 ))
seed=${FSX_SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
install_suite fsx "$version"

# config FILE-LENGTH OPERATION-SIZE CLOSE-OPEN
config() {
  cat <<END
flen = $1
[opsize]
max = $2
[weights]
close_open = $3
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 5
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 2
punch_hole = 5
sendfile = 5
posix_fadvise = 1
copy_file_range = 10
END
}

# Every file that fsx opens is opened with O_DIRECT. `cc` is there: Rust links with it.
direct_library() {
  cat >"$work/direct.c" <<'END'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/types.h>

typedef int (*opener)(const char *, int, ...);

static int direct(const char *symbol, const char *path, int flags, mode_t mode) {
  opener real = (opener)dlsym(RTLD_NEXT, symbol);
  return real(path, strstr(path, "/merged/fsx") ? flags | O_DIRECT : flags, mode);
}
#define WRAP(name)                                                             \
  int name(const char *path, int flags, ...) {                                 \
    va_list rest;                                                              \
    va_start(rest, flags);                                                     \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;    \
    va_end(rest);                                                              \
    return direct(#name, path, flags, mode);                                   \
  }
WRAP(open)
WRAP(open64)
END
  cc -shared -fPIC -O1 -o "$work/direct.so" "$work/direct.c" -ldl
}

# run NAME CONFIG [VARIABLE=VALUE]: fsx on $work/NAME/merged/fsx.
run() {
  local name=$1 config=$2 file=$work/$1/merged/fsx
  shift 2
  echo "$config" >"$work/$name.toml"
  local start=$SECONDS
  if ! env "$@" RUST_LOG=warn "$suites/bin/fsx" -f "$work/$name.toml" -S "$seed" -N "$ops" -P "$work" "$file" >"$work/$name.log" 2>&1; then
    tail -n 40 "$work/$name.log" >&2
    echo "fsx: $name: a mismatch; repeat it with FSX_SEED=$seed FSX_OPS=$((ops * 4))" >&2
    exit 1
  fi
  echo "fsx: $name: $ops operations, seed $seed, $((SECONDS - start)) s: no mismatch"
  unmount_from fuse "$name"
}

echo "fsx: seed $seed"
mount_on fuse new
run new "$(config 262144 65536 1)"

mkdir -p "$work/lower/lower"
head -c 262144 /dev/urandom >"$work/lower/lower/fsx"
mount_on fuse lower
run lower "$(config 262144 65536 1)"

direct_library
mount_on fuse direct
run direct "$(config 262144 65536 1)" LD_PRELOAD="$work/direct.so"

mount_on fuse sparse
run sparse "$(config 16777216 16384 0.1)"
