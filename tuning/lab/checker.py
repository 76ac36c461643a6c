"""What was promised, and whether it was kept: every write's outcome is remembered, every read is judged by it.

A name has one writer, so its writes have an order. A write that was answered is a promise. One that was not (an
error, a broken connection) may have taken effect, or take effect later, until the next answered write of the name.
So a read may give the value of write W when W began before the read ended, and no later write was answered before
the read began (Herlihy and Wing, "Linearizability", 1990, for a register with one writer).

One thing is promised less than that (docs/http-api.md): a node that did not take the write itself may show the state
before for STALE seconds. Reads that need this are counted. At rest nothing is forgiven."""

import random
import threading
import time
from collections import deque

ABSENT = None
STALE = 3.5


def body_of(name, version, size):
    """Bytes that say whose they are, and that no two writes share."""
    mark = f"{name} {version} {size}\n".encode()
    return (mark + random.Random(f"{name} {version}").randbytes(max(0, size - len(mark))))[: max(size, len(mark))]


class Write:
    def __init__(self, version, size, start):
        self.version, self.size, self.start = version, size, start
        # When its answer came; None while it has not, and for ever when it failed.
        self.answered = None


class Name:
    """A name's history. Only its writer appends; anybody judges."""

    KEPT = 64

    def __init__(self, path):
        self.path = path
        self.writes = deque([Write(0, ABSENT, 0.0)])
        self.writes[0].answered = 0.0
        self.lock = threading.Lock()
        self.version = 0

    def begin(self, size):
        with self.lock:
            self.version += 1
            write = Write(self.version, size, time.monotonic())
            self.writes.append(write)
            return write

    def end(self, write):
        """It was answered: what came before an answered write cannot be seen by reads from now on."""
        with self.lock:
            write.answered = time.monotonic()
            # A read that began a while ago may still be judged by earlier ones.
            while len(self.writes) > self.KEPT and self.writes[1].answered is not None and self.writes[1].answered < time.monotonic() - 120:
                self.writes.popleft()

    def possible(self, start, end):
        """The writes whose value a read from `start` to `end` may give."""
        with self.lock:
            found = []
            for write in reversed(self.writes):
                if write.start <= end:
                    found.append(write)
                if write.answered is not None and write.answered <= start:
                    break
            return found

    def judge(self, start, end, status, body, stale=STALE):
        """What is wrong with a read's answer: None when it is right, "stale" when it shows an older state that may
        still be shown."""
        strict = self.wrong(start, end, status, body)
        if strict is None or self.wrong(start - stale, end, status, body) is None:
            return strict and "stale"
        return strict

    def wrong(self, start, end, status, body):
        possible = self.possible(start, end)
        if status == 404:
            if any(write.size is ABSENT for write in possible):
                return None
            return f"lost: {self.path} is 404, but write {possible[0].version} stands"
        head = body[:300].split(b"\n", 1)[0].decode("ascii", "replace")
        for write in possible:
            if write.size is not ABSENT and body == body_of(self.path, write.version, write.size):
                return None
        standing = [(write.version, "absent" if write.size is ABSENT else write.size) for write in possible]
        if all(write.size is ABSENT for write in possible):
            return f"back: {self.path} was deleted, and gives {head!r}"
        parts = head.split()
        if len(parts) == 3 and parts[0] == self.path and parts[1].isdigit() and body == body_of(self.path, int(parts[1]), int(parts[2])):
            return f"old: {self.path} gives write {parts[1]}, possible are {standing}"
        return f"wrong bytes: {self.path} gives {len(body)} bytes beginning {head!r}; possible are {standing}"
