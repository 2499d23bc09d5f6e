#!/usr/bin/env python3
"""Prints what a dump of tcptrace holds, one line for each thing that it tells.

Written from docs/dump-format.md alone, to show that it says enough. Needs
Python 3.8 and nothing else.
"""
import json
import struct
import sys

SIGNATURE = b"\x89TCPT\r\n\x1a"
MAGIC = b"\xd5Fr\x96"
HEADER = struct.Struct("<4sBBHIIIIIIqQI")
MAX_RAW, MAX_BEFORE, MAX_TEXT, MAX_DEFINED = 4 << 20, 1 << 56, 1 << 16, 1 << 16
MASK64 = (1 << 64) - 1

TRAFFIC = {"bytes_sent": 64, "bytes_received": 64, "srtt_us": 32, "retransmits": 32, "unread": 32, "unacked": 32}
LISTENER = {"queue_len": 32, "queue_limit": 32, "syn_queue_len": 32, "somaxconn": 32, "backlog": 32,
            "abort_on_overflow": 1, "syncookies": 8, "attempt": 8, "synack_retries": 8}
INVENTORY = {"inode": 64, "uid": 32, "keepalive_time": -64, "keepalive_interval": -64, "keepalive_probes": 32,
             "idle": -64, "sent_idle": -64, "left": -64, "send_window": 32, "receive_window": 32, "probes": 8,
             "retransmits": 8, "minisocket": 1}
SYSCTLS = ["somaxconn", "tcp_syn_retries", "tcp_synack_retries", "tcp_syncookies", "tcp_abort_on_overflow",
           "tcp_max_syn_backlog", "tcp_retries2", "tcp_keepalive_time", "tcp_keepalive_intvl", "tcp_keepalive_probes",
           "tcp_fin_timeout", "tcp_tw_reuse", "tcp_max_tw_buckets", "port_range_low", "port_range_high"]
SHAPE = {"kind": 8, "old": 8, "new": 8, "flags": 16, "err": 16, "attempt": 8, "reason": 32, "tcp_flags": 8, "out": 1,
         "has": 64, "traffic": 64}


def crc_table():
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        table.append(n)
    return table


TABLE = crc_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def unsnappy(data):
    """The block format of Snappy; ValueError where it is none."""
    size = shift = at = 0
    while True:
        byte = data[at]
        size |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            break
    out = bytearray()
    while at < len(data):
        tag = data[at]
        at += 1
        kind, length = tag & 3, tag >> 2
        if kind == 0:  # a literal
            if length >= 60:
                width = length - 59
                length = int.from_bytes(data[at:at + width], "little")
                at += width
            out += data[at:at + length + 1]
            at += length + 1
            continue
        if kind == 1:
            length, offset = (length & 7) + 4, (tag >> 5) << 8 | data[at]
            at += 1
        else:
            width = 2 if kind == 2 else 4
            length, offset = length + 1, int.from_bytes(data[at:at + width], "little")
            at += width
        if not 0 < offset <= len(out) or len(out) + length > size:
            raise ValueError("a copy from nowhere")
        for _ in range(length):
            out.append(out[-offset])
    if len(out) != size:
        raise ValueError("of another length")
    return bytes(out)


def quoted(text):
    out = []
    for byte in text:
        plain = 0x20 <= byte <= 0x7E and byte not in b'"\\'
        out.append(chr(byte) if plain else "\\x%02x" % byte)
    return '"' + "".join(out) + '"'


def quoted_json(value):
    return quoted((value or "").encode())


def signed(value):
    value &= MASK64
    return value - (1 << 64) if value >> 63 else value


def cut(value, bits):
    """A field of so many bits; negative: signed; 1: 0 or not."""
    if bits == 1:
        return int(value & MASK64 != 0)
    return signed(value) if bits < 0 else value & ((1 << bits) - 1)


class Malformed(Exception):
    pass


class Frame:
    """A frame's header."""

    def __init__(self, data):
        (self.magic, self.kind, self.compression, self.number, self.seq, self.run, self.raw, self.stored, self.events,
         self.sum, self.first, self.before, own) = HEADER.unpack(data)
        self.sound = (
            self.magic == MAGIC and own == crc32c(data[:48]) and self.raw <= MAX_RAW and self.stored <= self.raw
            and self.before <= MAX_BEFORE and self.events <= self.raw and not (self.kind in (1, 2, 4) and self.events))


class Records:
    """The records of one frame."""

    def __init__(self, dump, frame, payload):
        self.dump, self.layout, self.b, self.at, self.time = dump, dump.layout, payload, 0, frame.first
        self.most, self.events = frame.events, 0
        self.shapes, self.addresses, self.sockets, self.processes, self.strings, self.listeners = [], [], [], [], [], []
        self.last_cookie = self.last_netns = 0
        self.inventory = {}

    def uint(self):
        value = 0
        for shift in range(0, 70, 7):
            if self.at >= len(self.b):
                raise Malformed("too little")
            byte = self.b[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value > MASK64:
                    break
                return value
        raise Malformed("a number of more than 64 bits")

    def narrow(self, bits):
        value = self.uint()
        if value >> bits:
            raise Malformed("a value wider than its field")
        return value

    def int(self):
        u = self.uint()
        return (u >> 1) ^ -(u & 1)

    def take(self, n):
        if n > len(self.b) - self.at:
            raise Malformed("too little")
        self.at += n
        return self.b[self.at - n:self.at]

    def bytes(self, most):
        n = self.uint()
        if n > most:
            raise Malformed("too long")
        return self.take(n)

    def text(self):
        return self.bytes(MAX_TEXT)

    def delta(self):
        self.time = signed(self.time + self.int())
        return self.time

    def define(self, where, what):
        if len(where) >= MAX_DEFINED:
            raise Malformed("too many definitions")
        where.append(what)

    def back(self, where):
        n = self.uint()
        if n >= len(where):
            raise Malformed("a reference to nothing")
        return where[len(where) - 1 - n]

    def item(self, where):
        n = self.uint()
        if n >= len(where):
            raise Malformed("a reference to nothing")
        return where[n]

    def group(self, fields, state):
        mask = self.uint()
        if mask >> len(fields):
            raise Malformed("a bit without a field")
        self.add(mask, fields, state)

    def add(self, mask, fields, state):
        for i, name in enumerate(fields):
            if mask >> i & 1:
                state[name] = state.get(name, 0) + self.int()

    def read(self):
        while self.at < len(self.b):
            self.record()
        if self.events != self.most:
            raise Malformed("fewer events than the header says")

    def record(self):
        tag, dump = self.uint(), self.dump
        if tag == 0:
            time = self.delta()
            dump.tell(time, "advance %d" % time)
        elif tag == 1:
            dump.tell(None, "clock %d" % signed(self.int()))
        elif tag == 2:
            shape = {}
            for name in self.layout["shape"]:
                shape[name] = self.narrow(SHAPE.get(name, 64))
            if shape["traffic"] >> len(self.layout["traffic"]):
                raise Malformed("a bit without a field")
            self.define(self.shapes, shape)
        elif tag == 3:
            address = self.bytes(16)
            if len(address) not in (4, 16):
                raise Malformed("no address")
            self.define(self.addresses, address.hex())
        elif tag == 4:
            self.last_cookie = (self.last_cookie + self.int()) & MASK64
            self.last_netns = (self.last_netns + self.int()) & 0xFFFFFFFF
            ends = []
            for _ in range(2):
                n, port = self.uint(), self.narrow(16)
                if n > len(self.addresses):
                    raise Malformed("a reference to nothing")
                ends.append("%s:%d" % (self.addresses[n - 1] if n else "-", port))
            self.define(self.sockets, {"sock": self.last_cookie, "netns": self.last_netns, "ends": ends, "traffic": {}})
        elif tag == 5:
            pid = self.narrow(32)
            self.define(self.processes, (pid, self.take(16), self.uint()))
        elif tag == 6:
            self.define(self.strings, self.text())
        elif tag == 7:
            self.define(self.listeners, {"id": self.uint(), "fields": {}})
        elif tag == 8:
            time, netns = self.delta(), self.narrow(32)
            dump.partial = False
            dump.tell(time, "begin netns=%d time=%d" % (netns, time))
        elif tag == 9:
            time, netns = self.delta(), self.narrow(32)
            dump.tell(time, None if dump.partial else "end netns=%d time=%d" % (netns, time))
        elif tag == 10:
            line = "namespace inode=%d name=%s known=%d" % (self.narrow(32), quoted(self.text()), self.uint() == 1)
            values = {name: signed(self.int()) for name in self.layout["sysctls"]}
            dump.tell(None, line + "".join(" %s=%d" % (name, values.get(name, 0)) for name in SYSCTLS))
        elif tag == 11:
            dump.tell(None, "process pid=%d comm=%s cgroup=%s exe=%s" % (
                self.narrow(32), quoted(self.text()), quoted(self.text()), quoted(self.text())))
        elif tag == 12:
            time = self.delta()
            dump.tell(time, "lost time=%d where=%s count=%d" % (time, quoted(self.text()), self.uint()))
        elif tag == 13:
            dump.tell(None, audit(json.loads(self.bytes(1 << 20))))
        elif tag == 14:
            self.uint()
            self.bytes(MAX_RAW)
        elif tag == 15:
            raise Malformed("no tag")
        else:
            self.event(tag - 16)

    def event(self, number):
        if number >= len(self.shapes):
            raise Malformed("a reference to nothing")
        shape = self.shapes[number]
        has = shape["has"]
        line = has >> 6 & 1
        if not line and self.events == self.most:
            raise Malformed("more events than the header says")
        time = self.delta()
        socket = self.back(self.sockets)
        pid, comm, cgroup = self.back(self.processes) if has & 1 else (0, bytes(16), 0)
        where = self.item(self.strings) if has & 2 else b""
        count = self.narrow(32) if has & 4 else 0
        self.add(shape["traffic"], self.layout["traffic"], socket["traffic"])
        out = ["time=%d sock=%d kind=%d old=%d new=%d flags=%d netns=%d local=%s remote=%s" % (
            time, socket["sock"], shape["kind"], shape["old"], shape["new"], shape["flags"], socket["netns"], *socket["ends"])]
        out.append("pid=%d comm=%s cgroup=%d err=%d attempt=%d reason=%d tcp_flags=%d out=%d where=%s count=%d" % (
            pid, quoted(comm), cgroup, shape["err"], shape["attempt"], shape["reason"], shape["tcp_flags"], shape["out"],
            quoted(where), count))
        out.append(show(TRAFFIC, socket["traffic"]))
        if has & 8:
            listener = self.back(self.listeners)
            self.group(self.layout["listener"], listener["fields"])
            out.append("listener=%d %s" % (listener["id"], show(LISTENER, listener["fields"])))
        if has & 16:
            self.group(self.layout["inventory"], self.inventory)
            out.append(show(INVENTORY, self.inventory))
        owner, name = (self.narrow(32), self.item(self.strings)) if has & 32 else (0, b"")
        for bit in range(7, 64):
            if has >> bit & 1:
                self.group(["later"] * 64, {})
        if not line:
            self.events += 1
            self.dump.told += 1
            self.dump.tell(time, "event " + " ".join(out))
        elif self.dump.partial:
            self.dump.tell(time, None)
        else:
            self.dump.tell(time, "snapshot %s owner=%d owner_comm=%s" % (" ".join(out), owner, quoted(name)))


def show(fields, state):
    return " ".join("%s=%d" % (name, cut(state.get(name, 0), bits)) for name, bits in fields.items())


def audit(a):
    out = ["audit at=%d since=%d" % (a.get("at", 0), a.get("since", 0))]
    for line in a.get("lines") or []:
        out.append("  counter=%s netns=%d kernel=%d explained=%d exact=%d note=%s" % (
            quoted_json(line.get("counter")), line.get("netns", 0), line.get("kernel", 0), line.get("explained", 0),
            line.get("exact", False), quoted_json(line.get("note"))))
    return "\n".join(out + ["  note " + quoted_json(note) for note in a.get("notes") or []])


class Dump:
    def __init__(self, data):
        self.b, self.at = data, 0
        self.damages = []
        self.hole = False  # something is missing since the last frame
        self.partial = False  # and of the snapshot at hand
        self.run = self.header = self.end = self.told = self.number = None
        self.seq = self.expect = self.expect_first = self.newest = 0

    def tell(self, time, line):
        if time is not None:
            self.newest = max(self.newest, time)
        if line is not None:
            print(line)

    def lost(self, n, time):
        if n > 0:
            print('lost time=%d where="dump" count=%d' % (self.newest or time, n))

    def damage(self, offset, length, events=0):
        self.hole = True
        if self.damages and self.damages[-1][1] and sum(self.damages[-1][:2]) == offset:
            self.damages[-1][1] += length
            self.damages[-1][2] += events
        else:
            self.damages.append([offset, length, events])

    def sound_at(self, at):
        """The header of a frame of this dump, or None."""
        if len(self.b) - at < HEADER.size:
            return None
        frame = Frame(self.b[at:at + HEADER.size])
        return frame if frame.sound and self.run in (None, frame.run) else None

    def seek(self, events):
        start, at = self.at, self.at + 1
        while True:
            at = self.b.find(MAGIC, at)
            if at < 0:
                at = len(self.b)
                break
            if self.sound_at(at):
                break
            at += 1
        self.at = at
        self.damage(start, at - start, events)

    def note(self, frame):
        if frame.kind == 1:
            return
        if self.told is None:
            self.told = frame.before
        self.expect, self.expect_first = max(self.expect, frame.before + frame.events), frame.first

    def frames(self):
        while self.at < len(self.b):
            frame = self.sound_at(self.at)
            if not frame:
                self.seek(0)
                continue
            begin, size = self.at + HEADER.size, HEADER.size + frame.stored
            stored = self.b[begin:begin + frame.stored]
            astray = self.header is not None and frame.seq < self.seq or self.end is not None
            if self.header is not None and not astray:
                self.note(frame)
            if len(stored) < frame.stored or crc32c(stored) != frame.sum:
                self.seek(frame.events)
                continue
            self.at += size
            payload = stored if frame.compression == 0 else None
            if frame.compression == 1:
                try:
                    payload = unsnappy(stored)
                except (ValueError, IndexError):
                    pass
            if payload is None or len(payload) != frame.raw:
                self.damage(self.at - size, size, frame.events)
            elif astray:
                self.damage(self.at - size, size)
            else:
                if self.header is not None and frame.seq != self.seq and not self.hole:
                    self.damage(self.at - size, 0)
                self.seq = frame.seq + 1
                yield frame, payload, self.at - size, size

    def open(self):
        if self.b.startswith(SIGNATURE):
            self.at = len(SIGNATURE)
        else:
            at = self.b.find(MAGIC)
            if not 0 <= at <= 72 or not self.sound_at(at):
                sys.exit("error: this is no dump of tcptrace")
            self.at = at
            self.damage(0, at)
        frames = self.frames()
        frame, payload, _, _ = next(frames, (None,) * 4)
        if frame is None or frame.kind != 1:
            sys.exit("error: its header cannot be read")
        header = json.loads(payload)
        if header.get("format", 0) != 1:
            sys.exit("error: this reader knows version 1 only")
        self.header, self.run, self.layout = header, frame.run, {k: v or [] for k, v in header["layout"].items()}
        whole = not header.get("part") and not header.get("window")
        self.told, self.partial = (0, False) if whole else (None, True)
        print("header format=%d tool=%s run=%s part=%d host=%s started=%d started_boot=%d key=%s" % (
            header["format"], quoted_json(header.get("tool")), quoted_json(header.get("run")), header.get("part", 0),
            quoted_json(header.get("host")), header.get("started", 0), header.get("started_boot", 0),
            bytes(header.get("key") or [0] * 16).hex()))
        return frames

    def up_to(self, before, time):
        if self.told is not None and before > self.told:
            self.partial = True
            self.lost(before - self.told, time)
            self.told = before

    def read(self):
        for frame, payload, at, size in self.open():
            if self.hole:
                self.partial = True
            self.hole = False
            if frame.kind == 4:
                self.up_to(frame.before, frame.first)
                self.end = json.loads(payload)
            elif frame.kind in (2, 3):
                if frame.kind == 3 and frame.before < self.told:
                    self.damage(at, size)
                    self.partial = True
                    continue
                self.up_to(frame.before, frame.first)
                if frame.kind == 2:
                    self.number = frame.number
                else:
                    if self.number not in (None, frame.number):
                        self.partial = True
                    self.number = (frame.number + 1) & 0xFFFF
                records = Records(self, frame, payload)
                try:
                    records.read()
                except (Malformed, ValueError):
                    missing = frame.events - records.events
                    self.damage(at, size, missing)
                    self.partial = True
                    self.lost(missing, frame.first)
                    self.told += missing
        if self.told is not None:
            self.up_to(self.expect, self.expect_first)
        self.close()

    def close(self):
        if self.end is None:
            print("cut off")
        else:
            print("the end reason=%s text=%s at=%d" % (
                quoted_json(self.end.get("reason")), quoted_json(self.end.get("text")), self.end.get("at", 0)))
            summary = self.end.get("summary")
            if summary:
                print("summary duration=%d" % summary.get("duration", 0))
                print(audit(summary.get("audit") or {}))
        for offset, length, events in self.damages:
            print("damage offset=%d bytes=%d events=%d" % (offset, length, events))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: reader.py FILE")
    with open(sys.argv[1], "rb") as f:
        Dump(f.read()).read()
