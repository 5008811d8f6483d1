import time

hoard = []
while True:
    hoard.append(b"x" * (1 << 20))
    time.sleep(0.001)
