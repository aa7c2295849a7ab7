# Runs in the enclosure after mmdebstrap, when nothing is mounted in the new system: removes what
# depends on the build machine or the time of the build.
#
# $1  the new system's root directory
# $2  the build's timestamp, in seconds since 1970
set -eu
root=$1 date=$2

# Device nodes that root can create and others can't; a guest mounts a devtmpfs there.
find "$root/dev" "$root/run" "$root/tmp" "$root/var/tmp" -mindepth 1 -delete
# Services that start in a job write to the directories that their packages created.
find "$root/var/log" -mindepth 1 ! -type d -delete
rm -rf "$root/var/cache/apt" "$root/var/cache/debconf"/*-old "$root/var/cache/ldconfig" \
    "$root/var/lib/apt/lists" "$root/var/lib/dpkg"/*-old "$root/etc"/*- "$root/.dockerenv"
mkdir -p "$root/var/cache/apt/archives/partial" "$root/var/lib/apt/lists/partial"

# The build machine's name and name servers, which mmdebstrap lends to package scripts.
rm -f "$root/etc/hostname" "$root/etc/resolv.conf"
: >"$root/etc/resolv.conf"
# Empty, because every guest is a new machine.
: >"$root/etc/machine-id"

# The day on which packages created their users, none of whom has a password.
sed -i -E "s/^([^:]*:[^:]*):[0-9]+:/\1:$((date / 86400)):/" "$root/etc/shadow"
