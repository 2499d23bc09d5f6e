"""An HTTP/1.1 server as programs with asyncio are.

usage: httpserver.py HOST PORT IDLE [reuseport]

HOST "all" is every address, IPv4 and IPv6 on a listener each.

IDLE is after how many seconds it closes a connection that asks for nothing.
/slow is answered after a second, /big with a megabyte, everything else at once
with the process's id. SIGTERM makes it close its listeners, finish what it was
asked, and end.
"""
import asyncio
import os
import signal
import sys

host, port, idle = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
draining = asyncio.Event()
busy = set()


async def header(reader):
    """Returns a request's header, or None where none comes any more."""
    read = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
    ends = asyncio.ensure_future(draining.wait())
    await asyncio.wait({read, ends}, timeout=idle, return_when=asyncio.FIRST_COMPLETED)
    if not read.done() and draining.is_set():
        # What was sent before it is told of the end has a right to an answer.
        await asyncio.wait({read}, timeout=2)
    ends.cancel()
    if not read.done():
        read.cancel()
        return None
    try:
        return read.result().decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def serve(reader, writer):
    busy.add(asyncio.current_task())
    try:
        while head := await header(reader):
            path = head.split(" ")[1]
            lines = head.lower().split("\r\n")
            length = [int(l.split(":")[1]) for l in lines if l.startswith("content-length:")]
            if length:
                await reader.readexactly(length[0])
            if path == "/slow":
                await asyncio.sleep(1)
            body = 1_000_000 * b"x" if path == "/big" else b"%010d" % os.getpid()
            last = draining.is_set() or "connection: close" in lines or "http/1.0" in lines[0]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n" %
                         (len(body), b"close" if last else b"keep-alive") + body)
            await writer.drain()
            if last:
                break
        writer.close()
        await writer.wait_closed()
    except (ConnectionError, asyncio.IncompleteReadError):
        writer.close()
    finally:
        busy.discard(asyncio.current_task())


async def main():
    server = await asyncio.start_server(serve, host if host != "all" else None, port, backlog=128, reuse_port="reuseport" in sys.argv)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("listening", flush=True)
    await stop.wait()
    # asyncio drops what it has accepted and not yet begun to serve when its
    # server is closed: accept no more, let these begin, and close then.
    for s in server.sockets:
        asyncio.get_running_loop().remove_reader(s.fileno())
    for _ in range(3):
        await asyncio.sleep(0)
    server.close()
    await asyncio.sleep(1)  # what was accepted last gets its handler
    draining.set()
    while busy:
        await asyncio.wait(set(busy))
    print("drained", flush=True)


asyncio.run(main())
