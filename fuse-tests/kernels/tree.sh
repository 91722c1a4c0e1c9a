# Sourced: a tree of layers at $at, and what a merged tree looks like.
# shellcheck shell=sh
layers=lowerdir=$at/l,upperdir=$at/u,workdir=$at/w

as_user() {
  setpriv --reuid 1000 --regid 1000 --clear-groups env HOME="$at" at="$at" unshare --user --map-root-user --mount sh -c ". $here/tree.sh; set -e; $1"
}

# Every object of the tree at $1: kind, mode, owner, size, time, link, name; contents and attributes.
look() (
  cd "$1" || exit
  find . ! -type d -printf '%y %m %U:%G %n %s %T@ %l %P\n' -o -printf '%y %m %U:%G %T@ %P\n' | LC_ALL=C sort -k 5
  find . -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum
  find . -print0 | LC_ALL=C sort -z | xargs -0r getfattr --no-dereference --dump --match '^user\.' --
)
