"""Runs on a host: writes files into a folder or over HTTP, and prints how many (or how many MB) a second. (For the comparison with GlusterFS.)"""

import http.client
import os
import sys
import threading
import time


def small(folder, threads, seconds):
    stop = time.monotonic() + seconds
    data = os.urandom(4096)
    counts = [0] * threads

    def work(at):
        while time.monotonic() < stop:
            with open(f"{folder}/s{at}-{counts[at]}", "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            counts[at] += 1

    took = seconds_of(threads, work)
    print(sum(counts) / took)


def large(folder, streams, files, mib):
    data = os.urandom(1 << 20)

    def work(at):
        for file in range(files):
            with open(f"{folder}/l{at}-{file}", "wb") as out:
                for _ in range(mib):
                    out.write(data)
                out.flush()
                os.fsync(out.fileno())

    took = seconds_of(streams, work)
    for at in range(streams):
        for file in range(files):
            os.unlink(f"{folder}/l{at}-{file}")
    print(streams * files * mib * 1.048576 / took)


def put(address, prefix, streams, files, mib):
    """The same over HTTP; an answer comes when the file is durable."""
    data = os.urandom(mib << 20)

    def work(at):
        conn = http.client.HTTPConnection(address, timeout=60)
        for file in range(files):
            conn.request("PUT", f"{prefix}/{at}-{file}", body=data)
            answer = conn.getresponse()
            answer.read()
            if answer.status not in (200, 201):
                os._exit(1)

    print(streams * files * mib * 1.048576 / seconds_of(streams, work))


def seconds_of(threads, work):
    workers = [threading.Thread(target=work, args=(at,)) for at in range(threads)]
    begun = time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.monotonic() - begun


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    {"small": small, "large": large, "put": put}[what](*(int(arg) if arg.isdigit() else arg for arg in rest))
