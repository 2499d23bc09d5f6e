"""TLS clients that end their connections in the ways that programs do.

usage: tlsclient.py PORT
"""
import socket
import ssl
import sys

context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n%s\r\n"


def ask(s, last):
    s.sendall(REQUEST % (b"Connection: close\r\n" if last else b""))
    got = b""
    while b"</p>" not in got:
        more = s.recv(4096)
        if not more:
            sys.exit("no answer")
        got += more


def connect():
    return context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20))


with connect() as s:  # closes without a close_notify
    ask(s, last=False)
with connect() as s:  # reads to the end, the server's close_notify included
    ask(s, last=True)
    if s.recv(10):
        sys.exit("more than the answer")
s = connect()  # sends a close_notify, and reads the server's
ask(s, last=False)
try:
    s.unwrap().close()
except (ssl.SSLError, OSError):
    s.close()
with connect() as s:  # knows the answer's length, and leaves the close_notify
    ask(s, last=True)
