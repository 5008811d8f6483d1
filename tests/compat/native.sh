#!/bin/sh
# Runs /code/main.py on the tree of an executor image without a sandbox: as pid 1 of namespaces of its own.
#
# Arguments: the tree; a directory with `code`, `input` and `output`; bytes of /tmp; then the program's
# environment (NAME=VALUE …). Limits are inherited, and nothing is mounted outside this mount namespace.

set -eu
tree=$1 job=$2 tmp=$3
shift 3

mount --bind -- "$tree" "$tree"
mount -o remount,bind,ro -- "$tree"
cd -- "$tree" # the mount, not what lies below it

mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777,size=64m tmpfs dev/shm
mount -t tmpfs -o "mode=1777,size=$tmp" tmpfs tmp
for device in 'null 1 3' 'zero 1 5' 'full 1 7' 'random 1 8' 'urandom 1 9' 'tty 5 0'; do
    # shellcheck disable=SC2086  # three words
    set -- "$@" && mknod -m 666 dev/${device% * *} c ${device#* }
done
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for number in '0 stdin' '1 stdout' '2 stderr'; do
    ln -s "/proc/self/fd/${number% *}" "dev/${number#* }"
done
for directory in code input output; do
    mount --bind -- "$job/$directory" "$directory"
done

hostname sandbox
chroot . /usr/sbin/ifconfig lo 127.0.0.1 up
# Not exec: pid 1 is deaf to signals it does not handle, and buries orphans. Whoever starts this may ignore some.
chroot --userspec=1000:1000 --groups= . /usr/bin/env -i -C /app --default-signal "$@" \
    /usr/bin/python3 -u /code/main.py </dev/null
