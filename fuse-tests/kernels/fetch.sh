# Sourced by run.sh: gets a kernel from the machine's own package mirrors into the cache.
# shellcheck shell=bash disable=SC2034,SC2154

kernels=(uml-5.10 uml-6.1 5.10 6.1 6.12 sid)

suites_of() {
  case $1 in
    *5.10) echo bullseye ;;
    *6.1) echo bookworm ;;
    6.12) echo trixie ;;
    sid) echo sid ;;
  esac
}

# The mirror of what this machine's apt uses: `main`, or `security`.
mirror() {
  local security='$2 !~ /-security$/'
  [ "$1" = security ] && security='$2 ~ /-security$/'
  apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 2>/dev/null |
    awk "$security"' && !found++ {print $1}'
}

# An apt of its own: nothing of the machine's state is touched.
private_apt() {
  local tool=$1
  shift
  "$tool" -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=- \
    -o Dir::State="$apt/state" -o Dir::State::Lists="$apt/lists" -o Dir::State::status="$apt/status" \
    -o Dir::Cache="$apt/cache" -o Debug::NoLocking=1 -o APT::Architecture=amd64 \
    -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=2 -qq "$@"
}

# The packages that a meta package stands for; newer ones split the image in several.
packages_of() {
  local image=$1
  case $1 in linux-image-*)
    image=$(private_apt apt-cache depends --important "$1" | awk '/Depends: linux-image-[0-9]/ && !found++ {print $2}')
    [ -n "$image" ] || return 1 ;;
  esac
  echo "$image"
  private_apt apt-cache depends --important "$image" | awk '/Depends: linux-(base|binary|modules)-[0-9]/ {print $2}'
}

# Sets kernel_dir: version, packages, boot (what is started), insmod (modules in their order).
fetch_kernel() {
  local kernel=$1 suite meta uri key tool
  kernel_dir=$cache/$kernel
  [ -e "$kernel_dir/complete" ] && return
  [ "$(uname -m)" = x86_64 ] || skip "the kernels are for x86_64"
  for tool in apt-get dpkg-deb depmod modprobe; do
    PATH=$PATH:/sbin:/usr/sbin command -v "$tool" >/dev/null || skip "$tool is needed to get a kernel"
  done
  suite=$(suites_of "$kernel")
  meta=linux-image-cloud-amd64
  case $kernel in uml-*) meta=user-mode-linux ;; esac
  uri=$(mirror main)
  [ -n "$uri" ] || skip "apt knows no mirror"
  rm -rf "$kernel_dir"
  apt=$kernel_dir/apt
  mkdir -p "$apt"/{state,lists/partial,cache/archives/partial,debs} "$kernel_dir/root"
  : >"$apt/status"
  key=
  [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] &&
    key='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
  echo "deb $key $uri $suite main" >"$apt/sources.list"
  if [ "$suite" != sid ] && [ "$meta" != user-mode-linux ] && uri=$(mirror security) && [ -n "$uri" ]; then
    echo "deb $key $uri $suite-security main" >>"$apt/sources.list"
  fi
  say "getting $meta of Debian $suite"
  local packages
  private_apt apt-get update >"$work/apt" 2>&1 || { cat "$work/apt" >&2; skip "no package lists of $suite"; }
  packages=$(packages_of "$meta") || skip "$suite has no $meta"
  # shellcheck disable=SC2086
  (cd "$apt/debs" && private_apt apt-get download $packages) >"$work/apt" 2>&1 ||
    { cat "$work/apt" >&2; skip "$packages can't be downloaded"; }
  local deb
  for deb in "$apt"/debs/*.deb; do
    dpkg-deb --extract "$deb" "$kernel_dir/root"
  done
  (cd "$apt/debs" && printf '%s ' *.deb | sed 's/ $//; s/%3a/:/g') >"$kernel_dir/packages"
  unpack_kernel
  rm -rf "$apt" "$kernel_dir/root"
  touch "$kernel_dir/complete"
}

unpack_kernel() {
  local root=$kernel_dir/root modules version file name
  # Newer packages have them in two trees.
  mkdir -p "$kernel_dir/tree/lib/modules"
  find "$root" -maxdepth 6 -type d -path '*/modules/[0-9]*' -prune |
    while IFS= read -r modules; do cp -a "$modules" "$kernel_dir/tree/lib/modules/"; done
  version=$(ls "$kernel_dir/tree/lib/modules")
  echo "$version" >"$kernel_dir/version"
  file=$(find "$root" \( -name linux.uml -o -name 'vmlinuz*' \) -type f -print -quit)
  mv "$file" "$kernel_dir/boot"
  PATH=$PATH:/sbin:/usr/sbin depmod -b "$kernel_dir/tree" "$version"
  mkdir "$kernel_dir/modules"
  for name in virtio_pci virtio_blk ext4 overlay fuse loop xfs btrfs; do
    PATH=$PATH:/sbin:/usr/sbin modprobe -d "$kernel_dir/tree" -S "$version" --show-depends "$name" 2>/dev/null |
      sed -n 's/^insmod \([^ ]*\).*/\1/p' || true
  done | awk '!seen[$0]++' | while read -r file; do
    name=$(basename "$file")
    case $name in
      *.xz) name=${name%.xz}; xz -dc "$file" >"$kernel_dir/modules/$name" ;;
      *.zst) name=${name%.zst}; zstd -qdc "$file" >"$kernel_dir/modules/$name" ;;
      *) cp "$file" "$kernel_dir/modules/$name" ;;
    esac
    echo "$name"
  done >"$kernel_dir/insmod"
  rm -rf "$kernel_dir/tree"
}
