#!/bin/sh
# Runs in a guest, or on this machine with the directory of leave.sh: the kernel's overlay mounts what
# leave.sh left, as a plain user, and shows the same tree; so does overfall.
here=${here:-/payload}
at=${at:-/tmp/left}
. "$here/tree.sh"
as_user 'mount -t overlay overlay -o "$layers,userxattr" "$at/m"; look "$at/m" >"$at/kernel"; umount "$at/m"' || exit
diff "$at/seen" "$at/kernel" || exit
as_user '$overfall mount --backend fuse -o "$layers" "$at/m"; look "$at/m" >"$at/again"; $overfall umount "$at/m"' || exit
diff "$at/seen" "$at/again" || exit
echo "the kernel's overlay of $(uname -r) shows the same $(wc -l <"$at/seen") lines"
