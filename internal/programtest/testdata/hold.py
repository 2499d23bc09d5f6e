"""Opens connections, has a request answered on each, and holds them.

usage: hold.py PORT COUNT

Commands come as lines on stdin, each answered by a line once it is done:
  send   writes a longer request on every connection
  end    reads on every connection until it ends, and closes it; answers with
         how many ended by FIN and how many by RST
"""
import socket
import sys

PING = b"PING\r\n"
ECHO = b"ECHO " + 100 * b"x" + b"\r\n"
port, count = int(sys.argv[1]), int(sys.argv[2])


def say(*words):
    print(*words, flush=True)


def ended_by(s):
    try:
        while s.recv(4096):
            pass
        return "FIN"
    except ConnectionResetError:
        return "RST"


held = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(count)]
for s in held:
    s.sendall(PING)
    if s.recv(64) != b"+PONG\r\n":
        sys.exit("no answer")
say("holding", len(held))
for line in sys.stdin:
    if line == "send\n":
        for s in held:
            s.sendall(ECHO)
        say("sent")
    elif line == "end\n":
        ends = []
        for s in held:
            ends.append(ended_by(s))
            s.close()
        say("ended", ends.count("FIN"), "FIN", ends.count("RST"), "RST")
