"""Connections between two ends of one program that are quiet, and well.

usage: idle.py SECONDS

One has keepalive probes each second, one none; one end of another has shut
down sending and waits for what the other sends slowly; one sends a byte now
and then. All are closed in order.
"""
import socket
import sys
import time


def pair():
    with socket.create_server(("127.0.0.1", 0)) as lis:
        a = socket.create_connection(lis.getsockname())
        b, _ = lis.accept()
    return a, b


def keepalive(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


ends = time.monotonic() + float(sys.argv[1])
probed, silent, half, drip = pair(), pair(), pair(), pair()
keepalive(probed[0])
for a, b in (probed, silent):
    a.sendall(b"hello")
    if b.recv(5) != b"hello":
        sys.exit("no answer")
half[0].sendall(b"all of it, please")
half[0].shutdown(socket.SHUT_WR)
while half[1].recv(100):
    pass
while time.monotonic() < ends:
    time.sleep(0.5)
    for a, b in ((half[1], half[0]), drip):
        a.sendall(b"x")
        if b.recv(1) != b"x":
            sys.exit("no answer")
half[1].close()
if half[0].recv(1):
    sys.exit("no end")
half[0].close()
for a, b in (probed, silent, drip):
    a.close()
    if b.recv(1):
        sys.exit("no end")
    b.close()
print("closed", flush=True)
