"""Tries to reach anything beyond the sandbox, by every protocol and address that could lead there."""
import errno, json, os, socket, time

targets = json.load(open('/input/data.json'))
answers = {}


def attempt(name, action):
    try:
        answers[name] = action() or 'done'
    except socket.gaierror as error:
        answers[name] = 'gaierror ' + str(error.errno)
    except OSError as error:
        answers[name] = errno.errorcode.get(error.errno, str(error))


def reach(family, kind, address, protocol=0, options=()):
    def action():
        with socket.socket(family, kind, protocol) as one:
            one.settimeout(0.5)
            for option in options:
                one.setsockopt(*option)
            if kind == socket.SOCK_STREAM:
                one.connect(address)
            else:
                one.sendto(b'x' * 64, address)
                one.recv(1)
    return action


# D8: descriptors that were there before
def is_open(descriptor):
    try:
        os.fstat(descriptor)
        return True
    except OSError:
        return False


answers['descriptors'] = [number for number in range(3, 4096) if is_open(number)]

STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
INET, INET6 = socket.AF_INET, socket.AF_INET6
# D1: what listens on the host's own loopback, those that the test made among it
for port in targets['tcp'] + [22, 80, 443, 2375, 5432, 6379, 8000, 8080]:
    name = 'the listener' if port in targets['tcp'] else f'port {port}'
    for family, address in ((INET, '127.0.0.1'), (INET, '127.0.1.1'), (INET6, '::1'), (INET, '0.0.0.0')):
        attempt(f'{address}: {name}', reach(family, STREAM, (address, port)))
for port in targets['udp']:
    attempt('UDP to the listener', reach(INET, DATAGRAM, ('127.0.0.1', port)))
    attempt('UDP to the listener, IPv6', reach(INET6, DATAGRAM, ('::1', port)))
# D2, D4: further away
for address in ('169.254.169.254', '10.0.0.1', '172.17.0.1', '192.168.0.1', '192.168.1.1', '1.1.1.1',
                '100.100.100.200', '255.255.255.255', '224.0.0.1'):
    attempt(f'TCP {address}', reach(INET, STREAM, (address, 80)))
    attempt(f'UDP {address}', reach(INET, DATAGRAM, (address, 53), options=[(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)]))
    attempt(f'ping {address}', reach(INET, DATAGRAM, (address, 0), socket.IPPROTO_ICMP))
for address in ('fd00:ec2::254', '2606:4700:4700::1111', 'fe80::1%lo', 'ff02::1'):
    attempt(f'TCP {address}', reach(INET6, STREAM, (address, 80)))
    attempt(f'UDP {address}', reach(INET6, DATAGRAM, (address, 53)))
attempt('bind to a device', reach(INET, DATAGRAM, ('1.1.1.1', 9), options=[(socket.SOL_SOCKET, 25, b'eth0')]))
# D3: names
for name in ('example.com', 'metadata.google.internal', 'localhost.localdomain', 'sandbox', 'localhost'):
    asked = time.monotonic()
    attempt(f'resolve {name}', lambda: sorted({entry[4][0] for entry in socket.getaddrinfo(name, 80)}))
    answers[f'at once: {name}'] = time.monotonic() - asked < 1
answers['resolv.conf'] = open('/etc/resolv.conf').read() if os.path.exists('/etc/resolv.conf') else None
answers['hosts'] = open('/etc/hosts').read()


# D5: unix sockets of the host
def unix(path):
    def action():
        with socket.socket(socket.AF_UNIX, STREAM) as one:
            one.connect(path)
    return action


attempt('unix: the listener', unix(targets['socket']))
for path in ('/var/run/docker.sock', '/run/containerd/containerd.sock', '/run/systemd/private',
             '/run/dbus/system_bus_socket', '/run/systemd/notify', '/dev/log', '/tmp/.X11-unix/X0',
             '\0/tmp/.X11-unix/X0', '\0' + 'x' * 16):
    attempt('unix: ' + path.replace('\0', '@'), unix(path))
planted = '/output/planted'
server = socket.socket(socket.AF_UNIX)
server.bind(planted)
server.listen()
attempt('unix: its own', unix(planted))

# What there is: a loopback of its own
attempt('list the interfaces', socket.if_nameindex)
answers['interfaces'] = [line.split(':')[0].strip() for line in open('/proc/net/dev') if ':' in line]
for table in ('route', 'arp', 'ipv6_route', 'if_inet6', 'tcp', 'udp', 'unix'):
    path = '/proc/net/' + table
    answers[path] = len(open(path).read().splitlines()) if os.path.exists(path) else None
print(json.dumps(answers), flush=True)
# Long enough for a look from outside.
time.sleep(1)
