#!/usr/bin/env python3
"""A node of a group dies for good and an empty one takes its place: how fast it fills itself, beside a raw copy of the
same folder to the same disk, and what viewers notice of it."""

import argparse
import http.client
import random
import statistics
import sys
import threading
import time

import hosts
from checker import body_of
from cluster import Cluster, upload_all
from hosts import Lab, say, until


class Viewers:
    """Readers of small files and of ranges of large ones; latencies by phase."""

    def __init__(self, address, small, large, count):
        self.address, self.small, self.large = address, small, large
        self.took, self.failed = [], 0
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.watch, args=(seed,)) for seed in range(count)]
        for thread in self.threads:
            thread.start()

    def watch(self, seed):
        rng = random.Random(seed)
        conn = http.client.HTTPConnection(self.address, timeout=10)
        while not self.stop.wait(0.01):
            begun = time.monotonic()
            try:
                if rng.random() < 0.8:
                    path, size = rng.choice(self.small)
                    conn.request("GET", path)
                    answer = conn.getresponse()
                    good = answer.read() == body_of(path, 1, size)
                else:
                    path, size = rng.choice(self.large)
                    first = rng.randrange(size - 65_536)
                    conn.request("GET", path, headers={"Range": f"bytes={first}-{first + 65_535}"})
                    answer = conn.getresponse()
                    good = answer.status == 206 and len(answer.read()) == 65_536
            except (OSError, http.client.HTTPException):
                conn.close()
                good = False
            self.took.append(time.monotonic() - begun)
            self.failed += not good

    def p99(self):
        """Of what was seen since the last call, in milliseconds."""
        took, self.took = sorted(self.took), []
        return took[int(len(took) * 0.99)] * 1000 if took else float("nan")


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
        speeds, raws, ratios, worse, failed = [], [], [], [], 0
        viewers = Viewers(address, small, large, 4)
        time.sleep(5)
        for round_ in range(args.rounds):
            drop = lambda: open("/proc/sys/vm/drop_caches", "w").write("1")
            # The floor: cp of a peer's folder through both page caches, synced.
            dead.host.run("rm", "-rf", data, f"{data}.raw")
            hosts.run("sync")
            viewers.p99()
            time.sleep(5)
            before = viewers.p99()
            drop()
            begun = time.monotonic()
            hosts.run("nsenter", "--target", dead.host.first.pid, "--mount", "--", "sh", "-c", f"cp -r /proc/{source.host.first.pid}/root{source.host.dir}/disk/data {data}.raw && sync -f {data}.raw")
            raw = used / (time.monotonic() - begun)
            dead.host.run("rm", "-rf", f"{data}.raw")
            hosts.run("sync")
            time.sleep(2)
            drop()
            viewers.p99()
            begun = time.monotonic()
            dead.start()
            until("the new node is well", dead.is_well, 300, 0.1)
            until("the group is whole", lambda: cluster.is_whole(1), 300, 0.1)
            took = time.monotonic() - begun
            during = viewers.p99()
            speeds.append(used / took)
            raws.append(raw)
            ratios.append(used / took / raw)
            worse.append(during / before)
            say(f"  round {round_ + 1}: raw copy {raw:.0f} MiB/s; full again after {took:.1f} s, {used / took:.0f} MiB/s; viewers' p99 {before:.1f} ms before, {during:.1f} ms while it filled")
            filled = int(dead.host.run("du", "-sm", data).stdout.split()[0])
            say(f"    {filled} MiB there, {used} MiB at its peer")
            dead.die()
            time.sleep(3)
        viewers.stop.set()
        for thread in viewers.threads:
            thread.join()
        spread = lambda values: f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
        say(f"refill beside the raw copy {spread(ratios)}; viewers' p99 while filling beside before {spread(worse)}; {viewers.failed} reads failed")
        good = statistics.median(ratios) >= 0.6 and statistics.median(worse) <= 2 and viewers.failed == 0
        sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
