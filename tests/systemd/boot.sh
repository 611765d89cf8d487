#!/bin/sh
# Boots the machine's own systemd as PID 1 of a small world of its own, so that units can be tried for real.
#
#   unshare --fork --kill-child --pid --mount --uts --ipc --net boot.sh FOLDER
#
# The world sees the machine's files through an overlay, so nothing that it writes stays: FOLDER/files is laid over the
# root, FOLDER/shared appears as /shared. It has its own network with only a loopback, its own processes, /run, /tmp and
# control group, few devices, and of systemd's units only journald and what it is asked to start.
set -eu

folder=$1
world=$folder/world
mkdir -p "$world"

if [ "${2:-}" != inside ]; then
    mount --make-rprivate /
    mount -t tmpfs tmpfs "$world"
    # A control group below the machine's, which becomes the root of ours.
    mkdir "$world/groups"
    mount -t cgroup2 cgroup2 "$world/groups"
    mkdir -p "$world/groups/$(basename "$folder")"
    echo 0 >"$world/groups/$(basename "$folder")/cgroup.procs"
    exec unshare --cgroup "$0" "$folder" inside
fi

mkdir "$world/upper" "$world/work" "$world/root"
cp -a "$folder/files/." "$world/upper"
mount -t overlay overlay -o "lowerdir=/,upperdir=$world/upper,workdir=$world/work" "$world/root"
cd "$world/root"
chmod 0755 . # cp gave it the mode of a folder for tests, which only we may enter

mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for place in run tmp dev; do mount -t tmpfs -o mode=0755 tmpfs "$place"; done
chmod 1777 tmp
for device in null zero full random urandom tty; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir -p dev/shm dev/pts shared
mount -t tmpfs tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount --bind "$folder/shared" shared

# Of all that a host starts, nothing: not its network, its disks, its clock.
rm -rf etc/systemd/system/*.wants usr/lib/systemd/system/*.wants
mkdir -p usr/lib/systemd/system/sockets.target.wants
for socket in systemd-journald systemd-journald-dev-log; do
    ln -s "../$socket.socket" "usr/lib/systemd/system/sockets.target.wants/$socket.socket"
done
ln -sf /dev/null etc/systemd/system/systemd-journald-audit.socket
ln -sf /dev/null etc/systemd/system/systemd-remount-fs.service
rm -rf var/log/journal etc/machine-id
echo 0123456789abcdef0123456789abcdef >etc/machine-id

ip link set lo up
# Not a chroot: systemd makes namespaces of its own for services, which start from a real root.
mkdir -p mnt
pivot_root . mnt
umount -l /mnt
# It would do this itself on a host. Credentials, for one, are mounted in a namespace and must show in the others.
mount --make-rshared /
exec /usr/bin/env -i container=drill PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    /lib/systemd/systemd --system --unit=basic.target --show-status=0 --log-target=journal --log-level=notice
