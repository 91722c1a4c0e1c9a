# Sourced by run.sh: the guest's root file system, an ext4 image of this machine's own packages.
# shellcheck shell=bash disable=SC2154

programs=(acl attr busybox-static e2fsprogs fuse3 fuse-overlayfs git mawk procps python3 rsync sqlite3
  strace uidmap util-linux xfsprogs btrfs-progs)

# What is installed of them, with all that they need, and what every Debian has.
packages_of_root() {
  {
    dpkg-query -W -f='${Essential} ${Package}\n' | sed -n 's/^yes //p'
    dpkg-query -W -f='${Status} ${Package}\n' "${programs[@]}" 2>/dev/null | sed -n 's/^install ok installed //p'
  } | xargs apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts \
    --no-breaks --no-replaces --no-enhances | grep '^[a-z0-9]' | sort -u |
    xargs dpkg-query -W -f='${Status} ${binary:Package} ${Version}\n' 2>/dev/null | sed -n 's/^install ok installed //p' || true
}

# Sets root_image.
make_root() {
  local tree list key
  command -v dpkg-query >/dev/null || skip "the guest's programs are copied from a Debian's packages"
  list=$(packages_of_root)
  key=$({ echo "$repo $list"; cat "$here/root.sh"; } | sha256sum | cut -c1-16)
  root_image=$cache/root-$key.img
  [ -e "$root_image" ] && return
  [ "$(id -u)" = 0 ] || skip "the guest's root file system is made by root, once"
  say "making the guest's root file system"
  rm -f "$cache"/root-*.img
  tree=$work/root
  mkdir "$tree"
  # /bin and the like are links into /usr on most machines: their files are where these lead.
  local link
  for link in /bin /sbin /lib /lib32 /lib64 /libx32; do
    [ -L "$link" ] && cp -a "$link" "$tree/"
  done
  {
    cut -d' ' -f1 <<<"$list" | xargs dpkg-query -L |
      sed -E 's#^/(bin|sbin|lib|lib32|lib64|libx32)(/|$)#/usr/\1\2#; t; ' |
      grep -vE '^/\.$|^/usr/share/(doc|man|locale|info|bug|lintian|i18n|zoneinfo|perl|gitweb)/.|^/(boot|home|root|dev|proc|sys|run|tmp)/'
    # Names that a package's own scripts made.
    find /usr/bin /usr/sbin /usr/lib -lname '/etc/alternatives/*' || true
    find /etc/alternatives /etc/ld.so.conf.d
    printf '%s\n' /etc/ld.so.cache /etc/passwd /etc/group /etc/nsswitch.conf /etc/fuse.conf \
      /etc/subuid /etc/subgid /etc/hosts
  } | sort -u | while IFS= read -r file; do
    if [ -e "$file" ] || [ -L "$file" ]; then printf '%s\0' "${file#/}"; fi
  done | tar --directory / --create --no-recursion --null --files-from - |
    tar --directory "$tree" --extract --preserve-permissions
  mkdir -p "$tree"/{dev,proc,sys,run,tmp,mnt,root,home,var/tmp,usr/share/doc/overfall}
  echo guest >"$tree/etc/hostname"
  ln -sfn /proc/self/mounts "$tree/etc/mtab"
  chmod 1777 "$tree/tmp" "$tree/var/tmp"
  # Where the tests look for the program, and where the rest comes in.
  mkdir -p "$tree$repo/target/debug" "$tree/payload"
  cat >"$tree/overfall-init" <<'INIT'
#!/bin/sh
mount -t ext4 -o ro "$PAYLOAD" /payload && exec /payload/guest.sh
INIT
  chmod 755 "$tree/overfall-init"
  local size
  size=$(du -sm "$tree" | cut -f1)
  make_ext4 "$work/root.img" "$((size * 5 / 4 + 64))M" -d "$tree"
  mv "$work/root.img" "$root_image"
  rm -rf "$tree"
}
