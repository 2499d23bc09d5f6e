"""A pool of clients of redis that is used all the time, and one that is idle
for longer than redis keeps its connections and connects again when it must.

usage: redispool.py PORT COUNT SECONDS
"""
import select
import socket
import sys
import time

port, count, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])


def connect():
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def ask(s):
    s.sendall(b"*1\r\n$4\r\nPING\r\n")
    if s.recv(64) != b"+PONG\r\n":
        sys.exit("no answer")


ends = time.monotonic() + seconds
used = [connect() for _ in range(count)]
idle = [connect() for _ in range(count)]
again, turn, looked = 0, 0, 0.0
while time.monotonic() < ends:
    turn += 1
    ask(used[turn % count])
    if time.monotonic() - looked > 4:
        looked = time.monotonic()
        for i, s in enumerate(idle):
            if select.select([s], [], [], 0)[0]:
                if s.recv(1):
                    sys.exit("an answer to nothing")
                s.close()
                idle[i] = s = connect()
                again += 1
            ask(s)
    time.sleep(0.005)
for s in used + idle:
    s.close()
print("connected again", again, flush=True)
