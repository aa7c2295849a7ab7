#!/bin/sh
# Runs after the packages are installed, outside of the new system but in its namespaces, while apt
# still has the package lists. $1 is the new system's root directory.
#
# MAYFLY_WORK    directory for output to the builder
# MAYFLY_KERNEL  kernel package, or one that depends on it
# MAYFLY_DATE    the build's timestamp; empty: the date of the newest package list
# MAYFLY_FORMAT  dpkg's output format for each package
set -eu
root=$1

# --- the date of the packages' state -----------------------------------------------------------
date=$MAYFLY_DATE
if [ -z "$date" ]; then
    date=0
    for release in "$root"/var/lib/apt/lists/*Release; do
        of_release=$(date --utc --date="$(sed -n 's/^Date: //p' "$release" | head -n 1)" +%s)
        [ "$of_release" -le "$date" ] || date=$of_release
    done
fi
echo "$date" >"$MAYFLY_WORK/date"
export SOURCE_DATE_EPOCH="$date"

# --- users -------------------------------------------------------------------------------------
while IFS=: read -r name uid home shell groups; do
    chroot "$root" groupadd --gid "$uid" "$name"
    chroot "$root" useradd --uid "$uid" --gid "$uid" --groups "$groups" \
        --home-dir "$home" --create-home --shell "$shell" "$name" </dev/null
done <"$MAYFLY_WORK/users"

# --- what is installed -------------------------------------------------------------------------
dpkg-query --admindir="$root/var/lib/dpkg" --show \
    --showformat="$MAYFLY_FORMAT" >"$MAYFLY_WORK/packages"

# --- the kernel --------------------------------------------------------------------------------
# Downloaded, not installed: installing it would bring in programs that make initramfs images and
# boot loaders, which a guest never uses. The package name that is the same for all versions is
# that of an empty package which depends on the real one.
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
kernel=$(apt-cache depends --no-recommends --no-suggests "$MAYFLY_KERNEL" |
    sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
cd "$MAYFLY_WORK/kernel"
apt-get --quiet --option APT::Sandbox::User=root download "${kernel:-$MAYFLY_KERNEL}"
