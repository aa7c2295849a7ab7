#!/bin/bash
# Becomes the systemd of a machine made of namespaces, with a temporary overlay on this machine's file
# system. $1: an empty directory. $2, …: directories that are bind-mounted into the machine.
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
# Shows what has changed on the machine.
mkdir "$machine/run/changed"
mount --bind "$work/upper" "$machine/run/changed"
# For units that need the network of this machine.
touch "$machine/run/network"
mount --bind "$(dirname "$work")/network" "$machine/run/network"
# overlayfs has no unnamed files (O_TMPFILE), which the state directory needs.
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

# systemd's own units shut the machine down.
mkdir "$work/shutdown"
for unit in exit.target systemd-exit.service umount.target final.target; do
    cp "$machine/usr/lib/systemd/system/$unit" "$work/shutdown"
done

# No services of this machine, and none that systemd generates from /etc/init.d: only the targets that
# units refer to.
for directory in /etc/systemd/system /usr/lib/systemd/system /usr/local/lib/systemd/system \
    /usr/lib/systemd/system-generators /etc/systemd/system-generators; do
    [ ! -d "$machine$directory" ] || mount -t tmpfs tmpfs "$machine$directory"
done
for target in sysinit basic shutdown sockets timers paths multi-user network-online; do
    printf '[Unit]\nDescription=%s\nDefaultDependencies=no\n' "$target" \
        >"$machine/usr/lib/systemd/system/$target.target"
done
cp "$work"/shutdown/* "$machine/usr/lib/systemd/system"

cd "$machine"
mkdir .before
pivot_root . .before
umount -l .before
rmdir .before
# As a container manager does: systemd mounts credentials in another mount namespace, and they must
# propagate to this one.
mount --make-rshared /
exec env -i container=other PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=null --show-status=0
