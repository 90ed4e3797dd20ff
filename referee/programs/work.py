"""Threads that calculate with numpy, BLAS included, sort with callbacks and parse, for ever."""
import ctypes
import functools
import json
import re
import threading

import numpy

ctypes.CDLL(None).mallopt(-3, 65536)  # Blocks of 64 KiB or more are mapped one by one.


def deep(n):
    if n:
        return sorted([n, n - 1], key=lambda m: deep(n - 1))[0]
    a = numpy.full(50_000, 1.5)
    return float((a * 2).sum())


def work(number):
    text = json.dumps({str(i): [i] * 10 for i in range(200)})
    while True:
        a = numpy.random.rand(150, 150)
        numpy.linalg.inv(a @ a.T + numpy.eye(150))
        deep(5)
        json.loads(text)
        re.sub(r"(\d+)", lambda m: m.group(1) * 2, text[:500])
        functools.reduce(lambda x, y: x + y, map(float, range(300)))


for n in range(3):
    threading.Thread(target=work, args=(n,), daemon=True).start()
work(3)
