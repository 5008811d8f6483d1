"""Draws from everything that gives out chance, in an interpreter that may be one of many copies."""

import gc

gc.unfreeze()
import random

drawn = {}
# Every generator that was there already: what it gives out first must not be what a copy's does.
made_before = [thing for thing in gc.get_objects() if isinstance(thing, random.Random)]

import json
import multiprocessing
import multiprocessing.synchronize
import os
import secrets
import ssl
import sys
import tempfile
import uuid

drawn["random"] = random.getrandbits(256)
drawn["random.Random()"] = random.Random().getrandbits(256)
drawn["shuffled"] = str(random.sample(range(10**6), 20))
drawn["os.urandom"] = os.urandom(32).hex()
drawn["os.getrandom"] = os.getrandom(32).hex()
drawn["/dev/urandom"] = open("/dev/urandom", "rb").read(32).hex()
drawn["secrets"] = secrets.token_hex()
drawn["uuid1"] = str(uuid.uuid1())
drawn["uuid4"] = str(uuid.uuid4())
drawn["mktemp"] = tempfile.mktemp()
drawn["mkdtemp"] = tempfile.mkdtemp()
drawn["NamedTemporaryFile"] = tempfile.NamedTemporaryFile().name
drawn["authkey"] = bytes(multiprocessing.current_process().authkey).hex()
drawn["semaphore"] = multiprocessing.synchronize.SemLock._make_name()
drawn["RAND_bytes"] = ssl.RAND_bytes(32).hex()
client = ssl.create_default_context()
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
connection = client.wrap_bio(incoming, outgoing, server_hostname="example.org")
try:
    connection.do_handshake()
except ssl.SSLWantReadError:
    pass
hello = outgoing.read()
# Record header 5, handshake header 4, version 2, random 32, length 1, session 32 (RFC 8446, 4.1.2).
assert hello[0] == 22 and hello[5] == 1 and hello[43] == 32, hello
drawn["ClientHello random"] = hello[11:43].hex()
drawn["ClientHello session"] = hello[44:76].hex()

libraries = [line for line in open("/proc/self/maps") if "libc.so" in line]
shared = {"hash": hash("a"), "address": libraries[0].split("-")[0]}

if os.path.exists("/usr/share/tako-vm/preload"):
    import joblib
    import numpy
    import scipy.stats
    import sklearn.utils
    from joblib.externals.loky.backend import context, synchronize

    known = joblib._multiprocessing_helpers._rand._rng if hasattr(joblib._multiprocessing_helpers, "_rand") else None
    made_before = [generator for generator in made_before if generator is not known]
    drawn["numpy.random"] = str(numpy.random.randint(2**62, size=4))
    drawn["numpy.random state"] = str(numpy.random.mtrand._rand.bytes(32))
    drawn["default_rng"] = str(numpy.random.default_rng().integers(2**62, size=4))
    drawn["RandomState()"] = str(numpy.random.RandomState().randint(2**62, size=4))
    drawn["SeedSequence"] = str(numpy.random.SeedSequence().entropy)
    drawn["scipy"] = str(scipy.stats.norm.rvs(size=8))
    drawn["sklearn"] = str(sklearn.utils.check_random_state(None).randint(2**62, size=4))
    drawn["loky semaphore"] = synchronize.SemLock._make_name()
    kinds = (numpy.random.Generator, numpy.random.BitGenerator, numpy.random.RandomState)
    for number, thing in enumerate(thing for thing in gc.get_objects() if isinstance(thing, kinds)):
        if isinstance(thing, numpy.random.BitGenerator):
            thing = numpy.random.Generator(thing)
        drawn[f"of numpy, there before: {number}"] = str(thing.bytes(32))

for number, generator in enumerate(made_before):
    drawn[f"there before: {number}"] = generator.getrandbits(256)
print(json.dumps({"drawn": {name: str(value) for name, value in drawn.items()}, "shared": shared}))
