#!/bin/busybox sh
# First process of the emulated kernel: mounts, modules, then the tests. What it says is read on the console.
/bin/busybox mkdir -p /usr/bin
/bin/busybox --install -s /usr/bin
export PATH=/tools:/usr/bin:/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
# Only what concerns the tests goes to the console.
echo 1 > /proc/sys/kernel/printk
for module in $(/bin/busybox cat /modules/order); do
    insmod "/modules/$module" || echo "@@note module $module is not loaded"
done
/tools/ip link set lo up
echo "@@up $(uname -r)"
. /suite
echo "@@end"
poweroff -f
