# What the machine does, run by `tests.service`. The report goes to the second serial line: a line
# `== NAME` before each part, which `report.rs` takes apart.
#
# Beside this script on the disk: `programs/` with the compiled tests, `lists/` with the names of those
# to run, `tako-vm`, `command` (the path where the tests expect it), `state/`.

cd /tests || exit 1
export TAKO_VM_STATE_DIR=/tests/state
# The emulator takes some ten times as long as the processor that it runs on.
export TAKO_VM_TEST_SLOWNESS=10

part() {
    echo "== $1"
}

# The status of a command, as the last line of its part.
told() {
    "$@"
    echo "status $?"
}

command=$(cat command)
mkdir -p "$(dirname "$command")"
ln -s /tests/tako-vm "$command"

part kernel
uname -r
part mounts
cat /proc/self/mountinfo
part controllers
cat /sys/fs/cgroup/cgroup.controllers
part swap
cat /proc/swaps
part setup
told ./tako-vm setup
part hello
told ./tako-vm run -c 'print(1+1)'

part doctor
told ./tako-vm doctor --json
part mounted-twice
mount -t cgroup2 none /mnt
told ./tako-vm run -c 'print(1+1)'
umount /mnt

# A container has a cgroup of its own for the root of its hierarchy, and its processes are in there.
part in-a-container
told unshare --mount --cgroup sh -c \
    'umount --lazy /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && ./tako-vm run -c "print(1+1)"' 2>&1

# systemd writes to the root of the hierarchy as well, while a sandbox runs and a unit with a CPU quota
# comes and goes.
part beside-systemd
./tako-vm run --memory 128m --cpus 0.5 -c 'import time; time.sleep(20)' &
job=$!
leaf=
while [ -z "$leaf" ] && kill -0 $job; do
    sleep 0.2
    # Its quota is applied when the sandbox is ready.
    leaf=$(grep -ls '^50000 ' /sys/fs/cgroup/tako-vm/tako-*/cpu.max)
done
printf '[Service]\nType=oneshot\nCPUQuota=20%%\nExecStart=true\n' >/run/systemd/system/quota.service
systemctl daemon-reload
told systemctl start quota.service
cd "$(dirname "$leaf")" && grep '' cpu.max memory.max memory.swap.max memory.oom.group cgroup.type
cd /tests && kill $job
wait $job
echo "status $?"

for list in lists/*; do
    program=$(basename "$list")
    part "$program"
    # shellcheck disable=SC2046 # one argument a name
    told "programs/$program" --include-ignored --exact --test-threads=1 --color=never $(cat "$list")
done

part end
