"""Connects again and again, as a client library does, and tries a request.

usage: reconnect.py PORT COUNT
"""
import socket
import sys
import time

port, count = int(sys.argv[1]), int(sys.argv[2])
answered = 0
for _ in range(count):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
        try:
            s.sendall(b"PING\r\n")
            answered += s.recv(64) == b"+PONG\r\n"
        except (ConnectionResetError, BrokenPipeError):
            pass
    time.sleep(0.01)
print("answered", answered, flush=True)
