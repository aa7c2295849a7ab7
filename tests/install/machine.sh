#!/bin/bash
# Becomes the systemd of a machine made of namespaces, on a copy of this one's file system that keeps
# nothing. $1: an empty directory. $2, …: trees that the machine is to have, too.
set -eu
work=$1
shift
machine=$work/root
ip link set lo up
mount -t tmpfs -o mode=755 tmpfs "$work"
mkdir "$work/upper" "$work/work" "$machine"
mount -t overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" overlay "$machine"
mount -t proc proc "$machine/proc"
mount -t sysfs -o ro sysfs "$machine/sys"
mount -t cgroup2 cgroup2 "$machine/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$machine/run"
# What the machine's users change shows here.
mkdir "$machine/run/changed"
mount --bind "$work/upper" "$machine/run/changed"
# For units that have to reach what this machine reaches.
touch "$machine/run/network"
mount --bind "$(dirname "$work")/network" "$machine/run/network"
# An overlay has no files without a name, which the state directory is full of.
mkdir -p "$machine/var/lib/mayfly"
mount -t tmpfs -o mode=700 tmpfs "$machine/var/lib/mayfly"

mount -t tmpfs -o mode=755,nosuid tmpfs "$machine/dev"
mkdir "$machine/dev/net" "$machine/dev/pts" "$machine/dev/shm"
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 net/tun:10:200; do
    IFS=: read -r name major minor <<<"$node"
    mknod -m 666 "$machine/dev/$name" c "$major" "$minor"
done
mknod -m 660 "$machine/dev/kvm" c 10 232
: >"$machine/dev/console"
ln -s /proc/self/fd "$machine/dev/fd"
ln -s pts/ptmx "$machine/dev/ptmx"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$machine/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$machine/dev/shm"

for tree in "$@"; do
    mkdir -p "$machine$tree"
    mount --bind -o ro "$tree" "$machine$tree"
done

# What ends a machine is systemd's own.
mkdir "$work/ends"
for unit in exit.target systemd-exit.service umount.target final.target; do
    cp "$machine/usr/lib/systemd/system/$unit" "$work/ends"
done

# None of this machine's services, nor those that systemd makes of /etc/init.d; just what units stand
# in relation to.
for place in /etc/systemd/system /usr/lib/systemd/system /usr/local/lib/systemd/system \
    /usr/lib/systemd/system-generators /etc/systemd/system-generators; do
    [ ! -d "$machine$place" ] || mount -t tmpfs tmpfs "$machine$place"
done
for target in sysinit basic shutdown sockets timers paths multi-user network-online; do
    printf '[Unit]\nDescription=%s\nDefaultDependencies=no\n' "$target" \
        >"$machine/usr/lib/systemd/system/$target.target"
done
cp "$work"/ends/* "$machine/usr/lib/systemd/system"

cd "$machine"
mkdir .before
pivot_root . .before
umount -l .before
rmdir .before
# As a container's manager would: credentials are mounted elsewhere and have to show here.
mount --make-rshared /
exec env -i container=other PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=null --show-status=0
