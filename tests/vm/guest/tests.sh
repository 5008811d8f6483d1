# What the machine does, run by `tests.service`. The report goes to the second serial line: a line
# `== NAME` before each part, which `report.rs` takes apart.
#
# Beside this script on the disk: `programs/` with the compiled tests, `lists/` with the names of those
# to run, `tako-vm`, `command` (the path where the tests expect it), `state/`.

cd /tests || exit 1

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

for list in lists/*; do
    program=$(basename "$list")
    part "$program"
    # shellcheck disable=SC2046 # one argument a name
    told "programs/$program" --include-ignored --exact --test-threads=1 --color=never $(cat "$list")
done

part end
