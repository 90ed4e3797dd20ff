"""Asks a server for ever and checks every answer, until standard input ends.

    ask.py http PORT | redis SOCKET  [CONNECTIONS=8]

http: POSTs bodies of up to 256 KiB over lasting connections; the answer must be the same bytes, status 200.
redis: pipelines of SET, GET, APPEND, INCR and DEL; each answer must be the one right one.
A connection that breaks, or is silent for a minute, is a failure as a wrong answer is. Says `ready` when each
connection has had an answer; at the end the number of right answers, and one line for each failure. Ends with
status 1 if there was any.
"""
import http.client
import random
import socket
import sys
import threading
import time

SILENT_S = 60
WHAT, WHERE = sys.argv[1:3]
CONNECTIONS = int(sys.argv[3]) if len(sys.argv) > 3 else 8
POOL = random.Random(1).randbytes(1 << 20)
right = [0] * CONNECTIONS
failures = []
over = threading.Event()


def some_bytes(draw, most):
    size = draw.randrange(1, most)
    begin = draw.randrange(len(POOL) - size)
    return POOL[begin:begin + size]


def ask_http(number, draw):
    connection = http.client.HTTPConnection("127.0.0.1", int(WHERE), timeout=SILENT_S)
    while not over.is_set():
        body = some_bytes(draw, 1 << draw.randrange(8, 19))
        connection.request("POST", "/", body)
        answer = connection.getresponse()
        got = answer.read()
        if answer.status != 200 or got != body:
            raise ValueError(f"status {answer.status}, {len(got)} bytes for {len(body)}, equal: {got == body}")
        right[number] += 1


def command(*words):
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def read_answer(answers):
    line = answers.readline()
    if not line.endswith(b"\r\n"):
        raise ValueError(f"the answer is cut: {line!r}")
    if not line.startswith(b"$"):
        return line[:-2]
    return answers.read(int(line[1:]) + 2)[:-2]


def ask_redis(number, draw):
    server = socket.socket(socket.AF_UNIX)
    server.settimeout(SILENT_S)
    server.connect(WHERE)
    answers = server.makefile("rb")
    key, rounds = b"key:%d" % number, 0
    while not over.is_set():
        rounds += 1
        a, b = some_bytes(draw, 1 << draw.randrange(8, 19)), some_bytes(draw, 1000)
        pipeline = [
            ((b"SET", key, a), b"+OK"),
            ((b"APPEND", key, b), b":%d" % (len(a) + len(b))),
            ((b"GET", key), a + b),
            ((b"INCR", b"rounds:%d" % number), b":%d" % rounds),
            ((b"DEL", key), b":1"),
        ]
        server.sendall(b"".join(command(*words) for words, _ in pipeline))
        for words, expected in pipeline:
            got = read_answer(answers)
            if got != expected:
                raise ValueError(f"{words[0]}: {got[:100]!r} ({len(got)} bytes) for {expected[:100]!r}")
            right[number] += 1


def ask(number):
    try:
        {"http": ask_http, "redis": ask_redis}[WHAT](number, random.Random(number))
    except Exception as failure:
        failures.append(f"connection {number} after {right[number]} right answers: {failure!r}")


threads = [threading.Thread(target=ask, args=(n,)) for n in range(CONNECTIONS)]
for t in threads:
    t.start()
while not all(right) and not failures:
    time.sleep(0.01)
print("ready", flush=True)
sys.stdin.read()
over.set()
for t in threads:
    t.join()
print(sum(right))
for failure in failures:
    print(failure)
sys.exit(bool(failures))
