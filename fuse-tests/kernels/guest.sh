#!/bin/sh
# The guest's first process: sets it up, runs what `what` lists, says how it went, ends the guest.
# One line of the console, "overfall-kernels: status N", is the result.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TERM=dumb
mount -t proc proc /proc

end() {
  trap - EXIT
  cd /
  for mount in $(awk '$2 ~ "^/(var/)?tmp" {print $2}' /proc/mounts | sort -r); do umount "$mount" 2>/dev/null; done
  mount -o remount,ro /tmp 2>/dev/null
  sync
  echo "overfall-kernels: status $1"
  sleep 1
  busybox poweroff -f
}
trap 'end 1' EXIT

mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
exec </dev/null
while read -r module; do
  busybox insmod "/payload/modules/$module" 2>/dev/null # qemu's are there already
done </payload/insmod
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
ln -sf pts/ptmx /dev/ptmx
chmod 666 /dev/fuse
ip link set lo up 2>/dev/null
hostname guest

# Everything that is written goes to the disk.
. /payload/env
mount -t ext4 "$DISK" /tmp || exit
chmod 1777 /tmp
mkdir -p /tmp/root /tmp/var "$repo/target/debug"
chmod 1777 /tmp/var
mount --bind /tmp/var /var/tmp
overfall=$repo/target/debug/overfall
export HOME=/tmp/root TMPDIR=/tmp OVERFALL_TEST_SLOWNESS=10 overfall
# Where the tests look for the program.
mount --bind /payload/target "$repo/target/debug"

echo "== $kernel: $(uname -srv)"
failed=0
results=
while read -r what; do
  suite=${what%%:*}
  arguments=
  [ "$suite" = "$what" ] || arguments=${what#*:}
  echo "== $suite $arguments"
  read -r before _ </proc/uptime
  cd /tmp
  if [ -e "/payload/$suite.sh" ]; then
    set -- sh "/payload/$suite.sh"
  else
    # shellcheck disable=SC2086 # several arguments
    set -- "/payload/bin/$suite" $arguments
  fi
  { "$@" 2>&1; echo "$?" >/run/status; } | tee /run/said
  status=$(cat /run/status)
  read -r after _ </proc/uptime
  [ "$status" = 0 ] || failed=1
  counts=$(sed -n 's/^test result: [A-Za-z]*\. \(.*\); 0 measured.*/\1/p' /run/said | tail -n 1)
  [ -n "$counts" ] || counts=$(tail -n 1 /run/said)
  results="$results
$suite $arguments: $([ "$status" = 0 ] && echo ok || echo "FAILED ($status)"), $counts, $((${after%.*} - ${before%.*})) s"
done <"/payload/what"
echo "== results on $kernel, $(uname -r)$results"
end "$failed"
