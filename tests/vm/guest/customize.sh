#!/bin/sh
# Makes a machine that runs the tests out of a fresh Debian: run by mmdebstrap as its customize hook.
#
# Arguments: the tree, and the directory with `tests.service`; the kernel is put into `made` there.

set -eu
tree=$1
shop=$2

cat >"$tree/etc/fstab" <<'FSTAB'
/dev/vda /      ext4 defaults,noatime 0 0
/dev/vdb /tests ext4 defaults,noatime 0 0
/dev/vdc none   swap sw               0 0
FSTAB
mkdir "$tree/tests"
cp "$shop/tests.service" "$tree/etc/systemd/system/"
mkdir -p "$tree/etc/systemd/system/multi-user.target.wants"
ln -s ../tests.service "$tree/etc/systemd/system/multi-user.target.wants/"
# Nobody logs in, and waiting for the serial terminals' devices takes a minute in an emulator.
ln -s /dev/null "$tree/etc/systemd/system/serial-getty@ttyS0.service"
ln -s /dev/null "$tree/etc/systemd/system/getty.target"
cp "$tree"/boot/vmlinuz-* "$shop/made/vmlinuz"
cp "$tree"/boot/initrd.img-* "$shop/made/initrd"
rm -r "$tree"/boot/*
