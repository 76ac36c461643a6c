#!/usr/bin/env python3
"""A node of a group dies for good and an empty one takes its place: how fast it fills itself, beside a raw copy of the
same folder to the same disk, and what viewers notice of it."""

import argparse
import http.client
import multiprocessing
import random
import statistics
import sys
import tempfile
import time

import hosts
from checker import body_of
from cluster import Cluster, upload_all
from hosts import Lab, say, until


class Viewers:
    """Readers of small files and of ranges of large ones, a process each, so that what this script does meanwhile is
    not in their times."""

    def __init__(self, address, small, large, count):
        self.end = multiprocessing.Event()
        self.files = [tempfile.NamedTemporaryFile("r") for _ in range(count)]
        self.seen = [[] for _ in range(count)]
        self.readers = [multiprocessing.Process(target=watch, args=(address, small, large, seed, file.name, self.end)) for seed, file in enumerate(self.files)]
        for reader in self.readers:
            reader.start()

    def answers(self, begun, ended):
        """(milliseconds, whether it was right) of what was asked between two times of time.monotonic()."""
        for file, seen in zip(self.files, self.seen):
            seen += [tuple(map(float, line.split())) for line in file.read().splitlines()]
        return [(took * 1000, good) for seen in self.seen for at, took, good in seen if begun <= at < ended]

    def p99(self, begun, ended):
        took = sorted(took for took, _ in self.answers(begun, ended))
        return took[int(len(took) * 0.99)] if took else float("nan")

    def stop(self):
        self.end.set()
        for reader in self.readers:
            reader.join()


def watch(address, small, large, seed, name, end):
    rng = random.Random(seed)
    conn = http.client.HTTPConnection(address, timeout=10)
    with open(name, "w", buffering=1) as log:
        while not end.wait(0.01):
            path, size = rng.choice(small if rng.random() < 0.8 else large)
            part = rng.randrange(size - 65_536) if size > 1 << 20 else None
            begun = time.monotonic()
            try:
                conn.request("GET", path, headers={} if part is None else {"Range": f"bytes={part}-{part + 65_535}"})
                answer = conn.getresponse()
                body = answer.read()
                took = time.monotonic() - begun
                good = body == body_of(path, 1, size) if part is None else answer.status == 206 and len(body) == 65_536
            except (OSError, http.client.HTTPException):
                conn.close()
                took, good = time.monotonic() - begun, False
            log.write(f"{begun} {took} {int(good)}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    hosts.enter("the replacement of a node")
    with Lab() as lab:
        cluster = Cluster(lab, trackers=1, ids=1, groups=1, nodes=3, https=1, ack="2", virtual=False, disk_mib=args.mib * 3, segment="256 MiB")
        address = cluster.of("http")[0].address
        small = [(f"/ann/small/{at}", 4_000 + at * 13 % 30_000) for at in range(args.mib * 2)]
        large = [(f"/ann/large/{at}", 16 << 20) for at in range(args.mib // 17)]

        upload_all(address, ((path, lambda path=path, size=size: body_of(path, 1, size)) for path, size in small + large))
        until("the group is whole", lambda: cluster.is_whole(1), 120)
        dead, source = cluster.of("storage")[2], cluster.of("storage")[0]
        data = f"{dead.host.dir}/disk/data"
        used = int(source.host.run("du", "-sm", f"{source.host.dir}/disk/data").stdout.split()[0])
        dead.die()
        time.sleep(3)
        begun_all, ratios, worse = time.monotonic(), [], []
        viewers = Viewers(address, small, large, 4)
        time.sleep(5)
        for round_ in range(args.rounds):
            drop = lambda: open("/proc/sys/vm/drop_caches", "w").write("1")
            # The floor: cp of a peer's folder through both page caches, synced.
            dead.host.run("rm", "-rf", data, f"{data}.raw")
            hosts.run("sync")
            time.sleep(1)
            calm = time.monotonic()
            time.sleep(5)
            before = viewers.p99(calm, time.monotonic())
            drop()
            begun = time.monotonic()
            hosts.run("nsenter", "--target", dead.host.first.pid, "--mount", "--", "sh", "-c", f"cp -r /proc/{source.host.first.pid}/root{source.host.dir}/disk/data {data}.raw && sync -f {data}.raw")
            raw = used / (time.monotonic() - begun)
            dead.host.run("rm", "-rf", f"{data}.raw")
            hosts.run("sync")
            time.sleep(2)
            drop()
            begun = time.monotonic()
            dead.start()
            until("the new node is well", dead.is_well, 300, 0.1)
            until("the group is whole", lambda: cluster.is_whole(1), 300, 0.1)
            took = time.monotonic() - begun
            during = viewers.p99(begun, begun + took)
            ratios.append(used / took / raw)
            worse.append(during / before)
            say(f"  round {round_ + 1}: raw copy {raw:.0f} MiB/s; full again after {took:.1f} s, {used / took:.0f} MiB/s; viewers' p99 {before:.1f} ms before, {during:.1f} ms while it filled")
            filled = int(dead.host.run("du", "-sm", data).stdout.split()[0])
            say(f"    {filled} MiB there, {used} MiB at its peer")
            dead.die()
            time.sleep(3)
        viewers.stop()
        answers = viewers.answers(begun_all, time.monotonic())
        failed = sum(not good for _, good in answers)
        spread = lambda values: f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
        say(f"refill beside the raw copy {spread(ratios)}; viewers' p99 while filling beside before {spread(worse)}; {failed} of {len(answers)} reads failed")
        good = statistics.median(ratios) >= 0.6 and statistics.median(worse) <= 2 and failed == 0
        sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
