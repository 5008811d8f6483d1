"""Everything that a program can read of what it runs on."""
import json, os, platform, resource, socket, time

facts = {}


def read(path):
    try:
        with open(path, 'rb') as file:
            return file.read(1 << 16).decode('utf-8', 'backslashreplace')
    except OSError as error:
        return f'errno {error.errno}'


# G1: environments
for pid in sorted(name for name in os.listdir('/proc') if name.isdigit()):
    facts[f'environment of {pid}'] = sorted(read(f'/proc/{pid}/environ').split('\0'))
    facts[f'command of {pid}'] = read(f'/proc/{pid}/cmdline').split('\0')
# G3: mounts and links
facts['mounts'] = [' '.join(line.split()[4:]) for line in read('/proc/self/mountinfo').splitlines()]
facts['links'] = {name: os.readlink('/proc/self/' + name) for name in ('root', 'cwd', 'exe')}
facts['own cgroups'] = read('/proc/self/cgroup').splitlines()
facts['mapped files'] = sorted({line.split()[5].rsplit('/', 1)[0] for line in read('/proc/1/maps').splitlines()
                                if len(line.split()) > 5})
# G4: the kernel
facts['uname'] = list(os.uname())
for name in ('version', 'cmdline', 'filesystems', 'loadavg', 'cgroups'):
    facts[name] = sorted(read('/proc/' + name).splitlines())
# G5: who
facts['ids'] = [os.getresuid(), os.getresgid(), os.getgroups(), read('/proc/self/uid_map').split(), read('/proc/self/gid_map').split()]
# G6: the machine
memory = dict(line.split(':') for line in read('/proc/meminfo').splitlines())
facts['memory'] = memory['MemTotal'].strip()
facts['memory fields'] = sorted(memory)
facts['young'] = float(read('/proc/uptime').split()[0]) < 60
facts['processor'] = sorted({line.split(':')[0].strip() for line in read('/proc/cpuinfo').splitlines() if line})
facts['model name'] = [line for line in read('/proc/cpuinfo').splitlines() if line.startswith('model name')][0]
facts['statistics'] = sorted({line.split()[0].rstrip('0123456789') for line in read('/proc/stat').splitlines()})
facts['time used by others'] = sum(int(number) for line in read('/proc/stat').splitlines() if line.startswith('cpu') for number in line.split()[1:])
# G7: what gVisor adds, and every name that there is
facts['sentry-meminfo'] = sorted(line.split(':')[0] for line in read('/proc/sentry-meminfo').splitlines())
facts['proc'] = sorted(name for name in os.listdir('/proc') if not name.isdigit())
facts['proc self'] = sorted(os.listdir('/proc/self'))
settings = [os.path.join(root, name) for root, _, names in os.walk('/proc/sys') for name in names]
facts['settings'] = {path: read(path).split() for path in settings}
facts['sys'] = sorted(os.path.join(root, name) for root, _, names in os.walk('/sys') for name in names)
facts['places'] = {place: sorted(os.listdir(place)) for place in ('/', '/app', '/code', '/dev', '/input', '/output', '/run', '/run/tako-vm', '/tmp')}
facts['boot id'] = facts['settings'].pop('/proc/sys/kernel/random/boot_id')
# G9: the network
for name in ('arp', 'route', 'tcp', 'udp', 'unix', 'netlink', 'packet'):
    facts['net ' + name] = read('/proc/net/' + name).splitlines()[1:]
facts['net dev'] = [line.split(':')[0].strip() for line in read('/proc/net/dev').splitlines()[2:]]
# G10: the clocks
facts['clock resolution'] = [time.get_clock_info(name).resolution for name in ('time', 'monotonic', 'perf_counter')]
facts['clock'] = time.time()
facts['monotonic'] = time.monotonic() < 60
facts['boot time'] = time.clock_gettime(time.CLOCK_BOOTTIME) < 60
# G12: core dumps
facts['core'] = resource.getrlimit(resource.RLIMIT_CORE)
facts['names'] = [socket.gethostname(), socket.getfqdn(), platform.node()]
for path in ('/etc/hostname', '/etc/machine-id', '/etc/resolv.conf', '/etc/hosts', '/etc/passwd', '/var/lib/dbus/machine-id',
             '/sys/class/dmi/id/product_uuid', '/proc/kcore', '/proc/kmsg', '/dev/kmsg', '/proc/config.gz',
             '/proc/1/sched', '/proc/1/wchan', '/proc/1/stack', '/proc/self/autogroup', '/proc/self/cpuset', '/proc/self/loginuid'):
    facts['file ' + path] = read(path)
print(json.dumps(facts), flush=True)
