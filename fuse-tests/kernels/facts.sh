#!/bin/sh
# Runs in the guest: what is true on this kernel, as root and as uid 1000. Every line was tried.
good=0
bad=0
scratch=$(mktemp -d /tmp/facts-XXXXXX)
chmod 1777 "$scratch"
cd "$scratch" || exit

at_least() {
  printf '%s\n%s\n' "$1" "$(uname -r)" | sort --version-sort --check=quiet
}

# fact WORDS WANTED COMMAND…: the command says WANTED, or ends with 0 for `yes` and with more for `no`.
fact() {
  words=$1
  wanted=$2
  shift 2
  said=$("$@" 2>&1)
  status=$?
  case $wanted in
    yes) [ "$status" = 0 ] ;;
    no) [ "$status" != 0 ] ;;
    *) case $said in *"$wanted"*) true ;; *) false ;; esac ;;
  esac
  if [ $? = 0 ]; then
    good=$((good + 1))
    said=$(printf %s "$said" | tail -n 1)
    echo "ok: $words: $wanted${said:+ ($said)}"
  else
    bad=$((bad + 1))
    echo "NOT OK: $words: wanted $wanted, ended with $status: $said"
  fi
}

# since VERSION: what a fact is that is true from that kernel on.
since() {
  if at_least "$1"; then echo yes; else echo no; fi
}

as_user() {
  setpriv --reuid 1000 --regid 1000 --clear-groups env HOME="$scratch" "$@"
}

in_namespace() {
  as_user unshare --user --map-root-user --mount sh -c "set -e; overfall=$overfall; $1"
}

syscall() {
  python3 -c '
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
wrong = ctypes.c_long(-1)
libc.syscall(ctypes.c_long(int(sys.argv[1])), wrong, wrong, wrong, wrong, wrong, wrong)
sys.exit(ctypes.get_errno() == errno.ENOSYS)' "$1"
}

layers='d=$(mktemp -d -p "${at:-.}"); mkdir -p $d/l/dir/sub $d/u $d/w $d/m; echo lower >$d/l/file; echo x >$d/l/dir/x;'
options='lowerdir=$d/l,upperdir=$d/u,workdir=$d/w'
use='echo more >>$d/m/file; [ "$(cat $d/m/file)" = "$(printf "lower\nmore")" ];
  rm -r $d/m/dir; mkdir $d/m/dir; [ -z "$(ls $d/m/dir)" ]; mv $d/m/file $d/m/dir/; [ ! -e $d/m/file ];'
upper='[ "$(stat -c %F:%t:%T $d/u/file)" = "character special file:0:0" ];
  [ "$(getfattr --absolute-names --only-values -n user.overlay.opaque $d/u/dir)" = y ];'

echo "$(uname -srvm)"
for call in name_to_handle_at:303:2.6.39 statx:332:4.11 copy_file_range:326:4.5 renameat2:316:3.15 open_tree:428:5.2 move_mount:429:5.2 fsopen:430:5.2 \
  pidfd_open:434:5.3 clone3:435:5.3 close_range:436:5.9 openat2:437:5.6 faccessat2:439:5.8 mount_setattr:442:5.12; do
  rest=${call#*:}
  fact "the kernel has ${call%%:*}" "$(since "${rest#*:}")" syscall "${rest%%:*}"
done

fact "root: overlay mounts" yes sh -c "set -e; $layers mount -t overlay overlay -o $options \$d/m; $use umount \$d/m"
fact "root: overfall check" yes "$overfall" check --upper "$scratch"
fact "root: overfall run takes the kernel's overlay" yes "$overfall" run --backend native -- rm -rf /usr/share/doc
fact "root: the machine is as it was" yes test -d /usr/share/doc

fact "a user makes user namespaces" yes in_namespace true
fact "there: a 0:0 device on ext4" "$(since 5.8)" in_namespace 'd=$(mktemp -d -p .); mknod $d/w c 0 0'
fact "there: overlay without userxattr mounts" "$(since 5.11)" \
  in_namespace "$layers mount -t overlay overlay -o $options \$d/m; umount \$d/m"
fact "there: overlay with userxattr works on ext4" "$(since 5.11)" \
  in_namespace "$layers mount -t overlay overlay -o $options,userxattr \$d/m; $use umount \$d/m; $upper"
fact "there: user attributes on tmpfs" "$(since 6.6)" \
  in_namespace 'mount -t tmpfs t /mnt; setfattr -n user.x -v y /mnt'
fact "there: overlay with userxattr works on tmpfs" "$(since 6.6)" \
  in_namespace "mount -t tmpfs t /mnt; at=/mnt; $layers mount -t overlay overlay -o $options,userxattr \$d/m; $use"
fact "there: overfall's FUSE server works on ext4, and leaves what the kernel leaves" yes \
  in_namespace "$layers \$overfall mount --backend fuse -o $options \$d/m; $use \$overfall umount \$d/m; $upper"
if at_least 5.11; then carrier=overlay; else carrier=fuse.overfall; fi
fact "there: overfall takes by itself" "$carrier" \
  in_namespace "$layers \$overfall mount -o $options \$d/m; awk -v at=\$PWD/\${d#./}/m '\$2 == at {print \$3}' /proc/mounts; $use \$overfall umount \$d/m"
fact "a user's fusermount3 mounts" yes as_user sh -c \
  "set -e; $layers $overfall mount --backend fuse -o $options \$d/m; $use $overfall umount \$d/m"

if at_least 5.11; then
  fact "a user: overfall check" yes as_user "$overfall" check --upper "$scratch"
else
  fact "a user: overfall check" no as_user "$overfall" check --upper "$scratch"
  fact "a user: the cause it names" '"cause": "not_in_user_namespaces"' as_user "$overfall" check --json --upper "$scratch"
  fact "a user: overfall run --backend native says why not" '5.11' as_user "$overfall" run --backend native true
fi
fact "a user: overfall run" yes as_user "$overfall" run -- sh -c 'set -e; rm -rf /usr/share/doc; echo x >/overfall-was-here; ls /overfall-was-here; test ! -e /usr/share/doc'
fact "the machine is as it was" yes test -d /usr/share/doc -a ! -e /overfall-was-here
if at_least 6.6; then form="in memory"; else form="fallback form"; fi
fact "a user: overfall run inside of overfall run keeps its changes" "$form" as_user "$overfall" run -- "$overfall" run -v -- true

cd /
rm -rf "$scratch"
echo "$good facts hold, $bad don't"
[ "$bad" = 0 ]
