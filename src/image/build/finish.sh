# Runs in the enclosure when the new system is complete: removes what programs that ran in it have
# left, and ensures that nothing in it is newer than its packages.
#
# $1  the new system's root directory
# $2  the build's timestamp, in seconds since 1970
# $3  the script that hardens the system (src/image/hardening)
set -eu
root=$1 date=$2 harden=$3

# The last change, so that it covers everything that was installed.
chroot "$root" /bin/sh -s <"$harden"

find "$root/dev" "$root/run" "$root/tmp" "$root/var/tmp" -mindepth 1 -delete
rm -f "$root/etc"/*-
find "$root" -xdev -newermt "@$date" -exec touch --no-dereference --date="@$date" {} +
