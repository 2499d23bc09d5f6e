"""A pool of HTTP keep-alive connections, each of which serves one request.

usage: pool.py PORT COUNT leak|close

When the server closes its idle connections, "leak" takes no notice and "close"
closes them, too. It ends with its input.
"""
import http.client
import select
import sys

port, count, manner = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
pool = [http.client.HTTPConnection("127.0.0.1", port, timeout=20) for _ in range(count)]
for c in pool:
    c.request("GET", "/")
    response = c.getresponse()
    if response.status != 200 or not response.read() or c.sock is None:
        sys.exit("no answer, or no connection kept alive")
print("pooled", len(pool), flush=True)
waiting = list(pool)
while waiting:
    # Readable with nothing asked for: the server's FIN.
    for sock in select.select([c.sock for c in waiting], [], [], 20)[0]:
        c = next(c for c in waiting if c.sock is sock)
        waiting.remove(c)
        if manner == "close":
            c.close()
print("closed by the server", flush=True)
sys.stdin.read()
