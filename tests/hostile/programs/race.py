"""Ends while children keep exchanging files, directories, links and FIFOs in /output."""
import json, os, time

decoy = json.load(open('/input/data.json'))['decoy']
os.chdir('/output')


def put(name):
    with open(name, 'w') as file:
        file.write('plain')


def exchange_file():
    put('plain')
    os.rename('plain', 'flips')
    os.symlink(decoy, 'link')
    os.rename('link', 'flips')
    os.mkfifo('fifo')
    os.rename('fifo', 'flips')


def exchange_directory():
    os.mkdir('made')
    put('made/secret')
    os.rename('made', 'tree')
    os.rename('tree', 'made')
    os.symlink(os.path.dirname(decoy), 'tree')
    os.unlink('tree')
    os.unlink('made/secret')
    os.rmdir('made')


def grow():
    with open('grows', 'ab', buffering=0) as file:
        file.write(b'g' * 1000)
    if os.stat('grows').st_size > 1 << 20:
        os.truncate('grows', 0)


for action in (exchange_file, exchange_directory, grow):
    if os.fork() == 0:
        os.setsid()
        while True:
            try:
                action()
            except OSError:
                pass
time.sleep(0.3)
