# Runs in the enclosure when nothing is added to the new system any more: takes out what programs
# left that ran in it, and lets nothing in it be younger than its packages.
#
# $1  the new system's root directory
# $2  the time that stands for now, in seconds since 1970
# $3  script that hardens the system (src/image/hardening)
set -eu
root=$1 date=$2 harden=$3

# The last to change anything, so that it finds whatever the others have put there.
chroot "$root" /bin/sh -s <"$harden"

find "$root/dev" "$root/run" "$root/tmp" "$root/var/tmp" -mindepth 1 -delete
rm -f "$root/etc"/*-
find "$root" -xdev -newermt "@$date" -exec touch --no-dereference --date="@$date" {} +
