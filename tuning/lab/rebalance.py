#!/usr/bin/env python3
"""`reel rebalance` of many files between groups while they are read; killed in the middle and run again."""

import argparse
import http.client
import random
import subprocess
import sys
import threading
import time

import hosts
from checker import body_of
from cluster import REEL, TRACKER_PORT, Cluster, upload_all
from hosts import Lab, say


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--readers", type=int, default=4)
    args = parser.parse_args()
    hosts.enter("the rebalance test")
    with Lab() as lab:
        cluster = Cluster(lab, trackers=1, ids=1, groups=2, nodes=2, https=1, ack="2", virtual=False, disk_mib=2048)
        address = cluster.of("http")[0].address
        sizes = {at: 3_000_000 if at % 500 == 7 else 100 + at * 37 % 20_000 for at in range(args.files)}

        def path(at):
            return f"/mover-{at % 10}/dir/{at}"

        upload_all(address, ((path(at), lambda at=at: body_of(path(at), 1, sizes[at])) for at in range(args.files)))
        count = lambda group: int(cluster.pg_host.run(cluster.pg_bin / "psql", "-h", "127.0.0.1", "-U", "reel", "-At", "-c", f"select count(*) from files where grp = {group} and object <> 0").stdout)
        before = {group: count(group) for group in (1, 2)}
        say(f"files by group before: {before}")
        assert sum(before.values()) == args.files, before
        stop = threading.Event()
        totals = {"reads": 0, "failed": 0}
        slowest = [0.0]

        def read(seed):
            rng = random.Random(seed)
            conn = http.client.HTTPConnection(address, timeout=20)
            while not stop.is_set():
                at = rng.randrange(args.files)
                begun = time.monotonic()
                try:
                    conn.request("GET", path(at))
                    answer = conn.getresponse()
                    body = answer.read()
                    good = answer.status == 200 and body == body_of(path(at), 1, sizes[at])
                    why = f"{answer.status} {body[:200]!r}" if not good else ""
                except (OSError, http.client.HTTPException) as error:
                    good, why = False, repr(error)
                    conn.close()
                totals["reads"] += 1
                slowest[0] = max(slowest[0], time.monotonic() - begun)
                if not good:
                    totals["failed"] += 1
                    say(f"    read of {path(at)} failed: {why}")

        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(args.readers)]
        for reader in readers:
            reader.start()
        time.sleep(1)
        # The group with more files gives all it has.
        source = max(before, key=before.get)
        target = 3 - source
        command = [REEL, "rebalance", "--from", str(source), "--to", str(target), "--catalog", cluster.catalog, "--new-files"]
        environment = {"REEL_TRACKERS": f"{cluster.addresses['trackers'][0]}:{TRACKER_PORT}", "PATH": "/usr/bin:/bin"}
        begun = time.monotonic()
        first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        while count(target) - before[target] < before[source] / 3 and first.poll() is None:
            time.sleep(0.05)
        killed = first.poll() is None
        first.kill()
        first.wait()
        middle = count(target)
        say(f"{'killed' if killed else 'ended by itself'} with {middle - before[target]} of {before[source]} files moved")
        second = subprocess.run(command, env=environment, capture_output=True, text=True)
        say(f"again: {second.stdout.strip()} {second.stderr.strip()} ({time.monotonic() - begun:.1f} s in all)")
        time.sleep(2)
        stop.set()
        for reader in readers:
            reader.join()
        after = {group: count(group) for group in (1, 2)}
        wrong = 0
        conn = http.client.HTTPConnection(address, timeout=20)
        for at in range(args.files):
            conn.request("GET", path(at))
            answer = conn.getresponse()
            wrong += answer.read() != body_of(path(at), 1, sizes[at])
        say(f"files by group after: {after}; {totals['reads']} reads meanwhile, {totals['failed']} failed, slowest {slowest[0] * 1000:.0f} ms; {wrong} of {args.files} wrong at the end")
        if after[target] != args.files:
            say(cluster.pg_host.run(cluster.pg_bin / "psql", "-h", "127.0.0.1", "-U", "reel", "-c", f"select * from files where object = 0 or grp = {source} limit 5").stdout)
        good = killed and second.returncode == 0 and after == {source: 0, target: args.files} and totals["failed"] == 0 and wrong == 0
        sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
