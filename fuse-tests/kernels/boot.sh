# Sourced by run.sh: the guest's disks, and the two ways to boot a kernel.
# shellcheck shell=bash disable=SC2154

# An ext4 FILE of SIZE that the oldest kernel can mount.
make_ext4() {
  local file=$1 size=$2 mke2fs
  shift 2
  mke2fs=$(PATH=$PATH:/sbin:/usr/sbin command -v mke2fs) || skip "mke2fs is needed for the guest's disks"
  rm -f "$file"
  truncate -s "$size" "$file"
  "$mke2fs" -q -F -t ext4 -m 0 -O '^metadata_csum_seed,^orphan_file,^has_journal' "$@" "$file"
}

# Starts a program that ends after a time, and writes down how to end it sooner.
start() {
  timeout --kill-after 5 "$seconds" "$@" </dev/null 2>"$work/errors" &
  echo "$!" >"$work/guest"
  wait "$!" || true
}

boot_uml() {
  local seconds=${OVERFALL_KERNELS_TIME:-1200} fast=$work
  mkdir "$work/uml"
  # Its memory is a file: the quicker the better.
  if [ -w /dev/shm ]; then fast=/dev/shm; fi
  # It would give init the whole environment.
  start env -i PATH="$PATH" HOME="$work" TMPDIR="$fast" "$kernel_dir/boot" mem=1536M \
    ubd0rc="$root_image" ubd1r="$work/payload.img" ubd2="$disk" \
    root=/dev/ubda rootfstype=ext4 ro init=/overfall-init PAYLOAD=/dev/ubdb DISK=/dev/ubdc \
    uml_dir="$work/uml" umid=guest con=null con0=null,fd:1 ssl=null \
    quiet loglevel=3 panic=-1 oops=panic | cat
}
