"""Runs on a host: writes files into a folder, or looks for one, and prints what it took. (For the comparison with GlusterFS.)"""

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

    workers = [threading.Thread(target=work, args=(at,)) for at in range(threads)]
    begun = time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(sum(counts) / (time.monotonic() - begun))


def large(folder, files, mib):
    data = os.urandom(1 << 20)
    begun = time.monotonic()
    for at in range(files):
        with open(f"{folder}/l{at}", "wb") as out:
            for _ in range(mib):
                out.write(data)
            out.flush()
            os.fsync(out.fileno())
    print(files * mib * 1.048576 / (time.monotonic() - begun))


if __name__ == "__main__":
    {"small": small, "large": large}[sys.argv[1]](sys.argv[2], *map(int, sys.argv[3:]))
