"""Work for a real python3: numpy arrays of many sizes, in threads, made and dropped again.

    numpy_threads.py [ROUNDS=300] [THREADS=4]

The C library is told to map every block of 64 KiB or more by itself (and not to raise that limit, as it
does by default), so each array comes and goes by two memory calls of its own. Prints one line that is
the same on every run. Keeps nothing.
"""
import ctypes
import sys
import threading

import numpy

M_MMAP_THRESHOLD = -3
ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 300
THREADS = int(sys.argv[2]) if len(sys.argv) > 2 else 4
sums = [0] * THREADS


def work(number):
    for i in range(ROUNDS):
        a = numpy.full((i % 7 + 5) * 10_000, number + 1, dtype=numpy.int32)
        b = a * 2
        sums[number] += int(b[: 1000].sum())
        del a, b


threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
for t in threads:
    t.start()
for t in threads:
    t.join()
print("sums", sums)
