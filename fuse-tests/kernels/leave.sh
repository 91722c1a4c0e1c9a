#!/bin/sh
# Runs in the guest: an upper that overfall's FUSE server writes as a plain user, left on the disk with what
# its tree looked like. show.sh mounts it elsewhere.
here=/payload
at=/tmp/left
mkdir -p "$at/l/dir/sub/deep" "$at/l/moved" "$at/l/whole" "$at/u" "$at/w" "$at/m"
. "$here/tree.sh"
cd "$at/l" || exit
for name in file mode gone over link-me attributes dir/a dir/b dir/sub/c dir/sub/deep/d moved/x whole/y; do
  echo "lower $name" >"$name"
done
setfattr -n user.lower -v yes attributes
ln -s file soft
truncate -s 1M sparse
printf end | dd of=sparse seek=1048000 bs=1 conv=notrunc status=none
chown -R 1000:1000 "$at"
as_user '
  $overfall mount --backend fuse -o "$layers" "$at/m"
  cd "$at/m"
  echo appended >>file; chmod 4711 mode; rm gone; echo new >new; mv new over; ln link-me hard
  setfattr -n user.upper -v yes attributes; setfattr -x user.lower attributes
  rm -r dir/sub; mkdir dir/sub; echo again >dir/sub/c; mv dir/a dir/renamed; rm dir/b
  rm -r whole; mv file dir/; ln -sfn nowhere soft; mkfifo pipe; mkdir -p made/made; rm moved/x; rmdir moved
  printf start | dd of=sparse bs=1 conv=notrunc status=none; touch -d "2001-02-03 04:05:06" mode
  cd /; look "$at/m" >"$at/seen"; $overfall umount "$at/m"' || exit
[ -z "$(ls -A "$at/w/work")" ] || exit
echo "$(wc -l <"$at/seen") lines tell what overfall showed on $(uname -r)"
