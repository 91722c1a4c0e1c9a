#!/bin/sh
# install.sh PREFIX [DESTDIR]: lays overfall out below DESTDIR/PREFIX.
#
#   BINARY   what to install                      [default: target/release/overfall]
#   SBIN     where mount(8) looks for its helpers [default: PREFIX/sbin]
#   UNINSTALL=1 takes away what it would install
#
# bin/overfall                  the program
# bin/overfall-mount            link: `overfall mount` for who can name one word only
# SBIN/mount.fuse.overfall      link: mount -t fuse.overfall, and /etc/fstab
# SBIN/mount.overfall           link: mount -t overfall
# share/man, share/bash-completion, share/zsh, share/fish, share/doc/overfall
set -eu

usage() {
  echo "usage: [BINARY=FILE] [SBIN=DIR] install.sh PREFIX [DESTDIR]" >&2
  exit 2
}

case ${1-} in /*) prefix=${1%/} ;; *) usage ;; esac
destdir=${2-}
case $destdir in '' | /*) destdir=${destdir%/} ;; *) usage ;; esac
[ $# -le 2 ] || usage

top=$(cd "$(dirname "$0")/../.." && pwd)
binary=${BINARY:-$top/target/release/overfall}
sbin=${SBIN:-$prefix/sbin}
case $sbin in "$prefix"/*) sbin=${sbin#"$prefix"/} ;; *) echo "install.sh: SBIN isn't below PREFIX" >&2; exit 2 ;; esac
[ -x "$binary" ] || { echo "install.sh: $binary: there is no such program; build it first" >&2; exit 2; }

generated=$(mktemp -d)
trap 'rm -rf "$generated"' EXIT
"$binary" generate "$generated"

# The way from SBIN up to PREFIX, so that the links hold wherever the tree is put.
up=$(echo "$sbin" | sed 's|[^/][^/]*|..|g')
root=$destdir$prefix

# MODE FILE NAME: the names are below PREFIX.
put() {
  if [ -n "${UNINSTALL-}" ]; then
    rm -f "$root/$3"
  else
    mkdir -p "$root/$(dirname "$3")"
    install -m "$1" "$2" "$root/$3"
  fi
}

# TARGET NAME
link() {
  if [ -n "${UNINSTALL-}" ]; then
    rm -f "$root/$2"
  else
    mkdir -p "$root/$(dirname "$2")"
    ln -sfn "$1" "$root/$2"
  fi
}

put 755 "$binary" bin/overfall
link overfall bin/overfall-mount
for helper in mount.fuse.overfall mount.overfall; do
  link "$up/bin/overfall" "$sbin/$helper"
done
for page in "$generated"/man/man?/*; do
  section=$(basename "$(dirname "$page")")
  put 644 "$page" "share/man/$section/$(basename "$page")"
done
put 644 "$generated/completions/overfall.bash" share/bash-completion/completions/overfall
put 644 "$generated/completions/_overfall" share/zsh/site-functions/_overfall
put 644 "$generated/completions/overfall.fish" share/fish/vendor_completions.d/overfall.fish
for text in README.md docs/tuning.md docs/SEMANTICS.md docs/SECURITY.md docs/vagga.md; do
  put 644 "$top/$text" "share/doc/overfall/$(basename "$text")"
done
for licence in LICENSE-MIT LICENSE-APACHE; do
  put 644 "$top/$licence" "share/licenses/overfall/$licence"
done
if [ -n "${UNINSTALL-}" ]; then
  rmdir "$root/share/doc/overfall" "$root/share/licenses/overfall" 2>/dev/null || true
fi
