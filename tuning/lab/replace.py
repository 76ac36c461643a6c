#!/usr/bin/env python3
"""A node of a group dies for good and an empty one takes its place: how fast it fills itself, beside a raw copy of the
same folder to the same disk, and what viewers notice of it."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib

import hosts
from checker import body_of
from cluster import REEL, Cluster, upload_all
from hosts import Lab, say, until


class Viewers:
    """Readers of small files and of parts of large ones: `reel-bench readers`, a process of its own."""

    def __init__(self, address, files):
        self.list = tempfile.NamedTemporaryFile("w")
        for path, size in files:
            self.list.write(f"{path} {size} {zlib.crc32(body_of(path, 1, size))}\n")
        self.list.flush()
        self.log = tempfile.NamedTemporaryFile("r")
        command = [f"{REEL}-bench", "readers", "--server", address, "--files", self.list.name]
        self.readers = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=open(self.log.name, "w"))
        self.seen = []

    def answers(self, begun, ended):
        """(milliseconds, whether it was right) of what was asked between two times of time.monotonic()."""
        self.seen += [tuple(map(float, line.split())) for line in self.log.read().splitlines()]
        return [(took / 1000, good) for at, took, good in self.seen if begun <= at < ended]

    def p99(self, begun, ended):
        took = sorted(took for took, _ in self.answers(begun, ended))
        return took[int(len(took) * 0.99)] if took else float("nan")

    def stop(self):
        self.readers.stdin.close()
        self.readers.wait(20)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
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
        begun_all, ratios, worse, took = time.monotonic(), [], [], 10
        viewers = Viewers(address, small + large)
        time.sleep(5)
        for round_ in range(args.rounds):
            drop = lambda: open("/proc/sys/vm/drop_caches", "w").write("1")
            # The floor: cp of a peer's folder through both page caches, synced.
            dead.host.run("rm", "-rf", data, f"{data}.raw")
            hosts.run("sync")
            time.sleep(2)
            # Nobody's bytes are in memory when a time begins, the viewers' neither.
            drop()
            calm = time.monotonic()
            time.sleep(took)
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
            until("the new node is well", dead.is_well, 300, 0.25)
            until("the group is whole", lambda: cluster.is_whole(1), 300, 0.25)
            took = time.monotonic() - begun
            during = viewers.p99(begun, begun + took)
            # Without the space that its peer keeps ready for commits.
            filled = int(dead.host.run("du", "-sm", data).stdout.split()[0])
            ratios.append(filled / took / raw)
            worse.append(during / before)
            say(f"  round {round_ + 1}: raw copy {raw:.0f} MiB/s; {filled} MiB there after {took:.1f} s, {filled / took:.0f} MiB/s; viewers' p99 {before:.1f} ms before, {during:.1f} ms while it filled")
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
