"""HTTP clients of the kinds that programs are, all of them healthy.

usage: httpclients.py HOST PORT SECONDS MANNER...

Each MANNER runs by itself for so many seconds:
  close   asks with Connection: close and reads until the server closes
  first   keeps the connection alive for some requests and closes it itself
  half    shuts down sending behind its request and reads until the end
  probe   connects and closes, as a health check does
  pool    reuses connections at growing intervals, beyond what the server
          keeps them, and looks at each before it does
  async   as "first", by asyncio, with a host that has two addresses
  giveup  closes when a slow answer has not come in time
  big     reads big answers, not too fast
"""
import asyncio
import http.client
import select
import socket
import sys
import threading
import time

host, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
ends = time.monotonic() + seconds
done = {}


def connect():
    return socket.create_connection((host, port), timeout=20)


def read_all(s):
    got = b""
    while more := s.recv(65536):
        got += more
    return got


def answered(got):
    if not got.startswith(b"HTTP/1.1 200"):
        raise RuntimeError("no answer: %r" % got[:100])


def close():
    with connect() as s:
        s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answered(read_all(s))


def ask(c, *request):
    """Asks twice where the server closed a connection that was idle for long."""
    try:
        c.request(*request)
        answer = c.getresponse().read()
    except (ConnectionError, http.client.HTTPException):
        c.close()
        c.request(*request)
        answer = c.getresponse().read()
    if not answer:
        raise RuntimeError("no answer")


def first():
    c = http.client.HTTPConnection(host, port, timeout=20)
    for _ in range(5):
        ask(c, "POST", "/", 1000 * b"y")
    c.close()


def half():
    with connect() as s:
        s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        s.shutdown(socket.SHUT_WR)
        answered(read_all(s))


def probe():
    connect().close()
    time.sleep(0.1)


idle = []
pause = 0.0


def pool():
    global pause
    c = idle.pop(0) if len(idle) >= 3 else http.client.HTTPConnection(host, port, timeout=20)
    if c.sock and select.select([c.sock], [], [], 0)[0]:
        c.close()  # the server has; http.client connects again
    ask(c, "GET", "/")
    idle.append(c)
    time.sleep(pause)
    pause = (pause + 0.05) % 1.2


def async_():
    asyncio.run(async_first())


async def async_first():
    r, w = await asyncio.open_connection("localhost", port, happy_eyeballs_delay=0.25)
    try:
        for _ in range(5):
            w.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await w.drain()
            head = await r.readuntil(b"\r\n\r\n")
            answered(head)
            length = [l for l in head.split(b"\r\n") if l.lower().startswith(b"content-length:")]
            await r.readexactly(int(length[0].split(b":")[1]))
        w.close()
        await w.wait_closed()
    except (ConnectionError, asyncio.IncompleteReadError):
        w.close()  # it was idle for too long, as this program had to wait for a processor


def giveup():
    with connect() as s:
        s.settimeout(0.2)
        s.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        try:
            read_all(s)  # this program may have to wait for a processor for longer
        except TimeoutError:
            pass


def big():
    with connect() as s:
        s.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = 0
        while more := s.recv(32768):
            got += len(more)
            time.sleep(0.005)
        if got < 1_000_000:
            raise RuntimeError("a part is missing")


def run(name):
    function = globals().get(name) or globals()[name + "_"]
    try:
        while time.monotonic() < ends:
            function()
            done[name] = done.get(name, 0) + 1
            time.sleep(0.02)
    except Exception as e:
        print("failed:", name, repr(e), flush=True)


threads = [threading.Thread(target=run, args=(name,)) for name in sys.argv[4:]]
for t in threads:
    t.start()
for t in threads:
    t.join()
for c in idle:
    c.close()
print("done:", done, flush=True)
