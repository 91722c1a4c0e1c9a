# Sourced by run.sh: the guest's disks, and the two ways to boot a kernel.
# shellcheck shell=bash disable=SC2154

# Skips where what boots a kernel isn't there.
needs_to_boot() {
  local tool tools=(objcopy mke2fs tar)
  case $1 in uml-*) ;; *) tools+=(qemu-system-x86_64 cpio busybox) ;; esac
  for tool in "${tools[@]}"; do
    PATH=$PATH:/sbin:/usr/sbin command -v "$tool" >/dev/null || skip "$tool is needed to boot $1"
  done
}

# An ext4 FILE of SIZE that the oldest kernel can mount.
make_ext4() {
  local file=$1 size=$2
  shift 2
  rm -f "$file"
  truncate -s "$size" "$file"
  PATH=$PATH:/sbin:/usr/sbin mke2fs -q -F -t ext4 -m 0 -O '^metadata_csum_seed,^orphan_file,^has_journal' "$@" "$file"
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

# qemu has no way to give init a disk whose driver is a module: busybox loads them first.
make_initramfs() {
  local tree=$work/initramfs
  mkdir -p "$tree"/{bin,dev,proc,root,modules}
  cp "$(command -v busybox)" "$tree/bin/busybox"
  cp "$kernel_dir"/modules/* "$tree/modules/"
  cp "$kernel_dir/insmod" "$tree/"
  cat >"$tree/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do /bin/busybox insmod "/modules/$module"; done </insmod
tries=0
until [ -b /dev/vdc ] || [ "$tries" = 50 ]; do
  tries=$((tries + 1))
  /bin/busybox sleep 0.2
done
/bin/busybox mount -t ext4 -o ro /dev/vda /root
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /overfall-init
INIT
  chmod 755 "$tree/init"
  (cd "$tree" && find . | cpio --create --format newc --owner 0:0 --quiet | gzip -1) >"$work/initrd"
}

boot_qemu() {
  local seconds=${OVERFALL_KERNELS_TIME:-5400} file number=0
  local -a disks=()
  make_initramfs
  for file in "$root_image" "$work/payload.img" "$disk"; do
    disks+=(-drive "file=$file,if=none,id=d$number,format=raw,cache=unsafe,file.locking=off"
      -device "virtio-blk-pci,drive=d$number")
    number=$((number + 1))
  done
  # Without cmpxchg16b, which the emulator of qemu 7.2 gets wrong.
  start qemu-system-x86_64 -accel tcg -M q35 -cpu max,-cx16,-la57 -m 1536 -nodefaults -no-user-config \
    -display none -no-reboot -serial stdio -kernel "$kernel_dir/boot" -initrd "$work/initrd" "${disks[@]}" \
    -append "console=ttyS0 tsc=unstable no_timer_check random.trust_cpu=on mitigations=off quiet loglevel=3 panic=-1 oops=panic PAYLOAD=/dev/vdb DISK=/dev/vdc"
}
