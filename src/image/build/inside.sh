# Runs a program in the new system as in a guest: with /proc, a /dev of harmless devices, and an
# empty network, because an image consists only of what its recipe states. All of that belongs to
# the enclosure and ends with it.
#
# $1   the new system's root directory
# $2   the user name to run as
# $3   that user's home directory
# ...  the program and its arguments
set -eu
root=$1 user=$2 home=$3
shift 3

mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
for device in null zero random urandom; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir -m 1777 "$root/dev/shm"

# shellcheck disable=SC2016 # expanded by the shell of the new system
exec env --ignore-environment LC_ALL=C.UTF-8 HOME="$home" \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    DEBIAN_FRONTEND=noninteractive SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" \
    unshare --net chroot --userspec="$user" "$root" \
    /bin/sh -c 'cd "$HOME" && exec "$@"' sh "$@"
