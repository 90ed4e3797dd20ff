"""A real python3 that checks itself: numpy in threads, timers and pipes, until standard input ends.

    numpy_checked.py [THREADS=4]

Each round makes arrays that are mappings of their own, sums them up both ways, hands one through a pipe
that is smaller than it, and sleeps for a moment. Says `ready`, then the number of right rounds, and one
line for each thread that went wrong. Ends with status 1 if there was any.
"""
import ctypes
import os
import sys
import threading
import time

import numpy

M_MMAP_THRESHOLD = -3
ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)

THREADS = int(sys.argv[1]) if len(sys.argv) > 1 else 4
right = [0] * THREADS
failures = []
over = threading.Event()


def through_a_pipe(data, to, of):
    wrote = []

    def write():
        while sum(wrote) < len(data):
            wrote.append(os.write(to, data[sum(wrote):]))

    writer = threading.Thread(target=write)
    writer.start()
    got = bytearray()
    while len(got) < len(data):
        got += os.read(of, len(data) - len(got))
    writer.join()
    if wrote != [len(data)]:
        raise ValueError(f"a write of {len(data)} bytes to a pipe was cut into {wrote}")
    return bytes(got)


def work(number):
    of, to = os.pipe()
    try:
        while not over.is_set():
            size = (right[number] % 7 + 5) * 10_000
            a = numpy.arange(size, dtype=numpy.int64) + number
            total, expected = int((a * 2).sum()), size * (size - 1) + 2 * size * number
            if total != expected:
                raise ValueError(f"the sum is {total}, not {expected}")
            if through_a_pipe(a.tobytes(), to, of) != a.tobytes():
                raise ValueError("a pipe gave other bytes than it got")
            begin = time.monotonic()
            time.sleep(0.001)
            if time.monotonic() - begin < 0.001:
                raise ValueError("a sleep was cut short")
            right[number] += 1
    except Exception as failure:
        failures.append(f"thread {number} after {right[number]} right rounds: {failure!r}")


threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
for t in threads:
    t.start()
print("ready", flush=True)
sys.stdin.read()
over.set()
for t in threads:
    t.join()
print(sum(right))
for failure in failures:
    print(failure)
sys.exit(bool(failures))
