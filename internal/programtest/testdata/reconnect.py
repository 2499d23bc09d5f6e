"""Connects again and again to a server of redis' protocol.

usage: reconnect.py PORT COUNT served|refused

"served" has a request answered on each connection and closes it. "refused"
reads what the server has to say until it closes.
"""
import socket
import sys
import time

port, count, manner = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
for _ in range(count):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
        if manner == "served":
            s.sendall(b"PING\r\n")
            if s.recv(64) != b"+PONG\r\n":
                sys.exit("no answer")
        else:
            said = b""
            while more := s.recv(64):
                said += more
            if not said.startswith(b"-ERR max number of clients"):
                sys.exit("not refused")
    time.sleep(0.01)
print(manner, count, flush=True)
