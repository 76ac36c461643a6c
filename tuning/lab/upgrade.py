#!/usr/bin/env python3
"""A rolling upgrade: a cluster of the old build under steady load; each process is stopped in order and started again as the
new build, one at a time, storage nodes when their group is whole; HTTP servers take over from one another. Then the same back, as far as the data's format allows.
The checker of the fault run judges every answer."""

import argparse
import json
import sys
import threading
import time

import hosts
from checker import body_of
from cluster import HTTP_ADDRESS, HTTP_PORT, Cluster
from faults import Client, Run
from hosts import Lab, say, until


def upgrade(cluster, build):
    """Every process, in the order that docs/operations.md gives."""
    for kind in ("tracker", "id", "storage", "http"):
        for member in cluster.of(kind):
            begun = time.monotonic()
            if kind == "http":
                member.hand_over(build)
            else:
                member.stop()
                member.args = [build, *member.args[1:]]
                member.start()
            until(f"{member.host.name} is well", member.is_well, 60)
            if member.group:
                until(f"group {member.group} is whole", lambda: cluster.is_whole(member.group), 60)
            say(f"  {member.host.name} runs the other build after {time.monotonic() - begun:.1f} s")


def protocols(cluster):
    return sorted({view.get("protocol", 1) for view in cluster.nodes().values()})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", required=True, help="the build that runs first")
    parser.add_argument("--new", required=True, help="the build that takes over (its protocol may be one higher: REEL_PROTOCOL=2 cargo build --release)")
    parser.add_argument("--back", action="store_true", help="and back again")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    hosts.enter("the rolling upgrade")
    import cluster as cluster_module

    cluster_module.REEL = args.old
    with Lab() as lab:
        cluster = Cluster(lab)
        run = Run(cluster, [f"{HTTP_ADDRESS}:{HTTP_PORT}"], args.seed, 4, 60)
        film, film_bytes = "/user-0/film", 16 << 20
        status, body = Client(run.addresses).once("PUT", film, body_of(film, 1, film_bytes), timeout=60)
        assert status == 201, (status, body)
        threads = [threading.Thread(target=run.writer, args=(mine, f"{args.seed} w{at}")) for at, mine in enumerate(run.names)]
        threads += [threading.Thread(target=run.reader, args=(f"{args.seed} r{at}",)) for at in range(3)]
        threads += [threading.Thread(target=run.viewer, args=(film, film_bytes)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            say(f"before: protocols {protocols(cluster)}")
            upgrade(cluster, args.new)
            time.sleep(3)
            say(f"after: protocols {protocols(cluster)}")
            if args.back:
                upgrade(cluster, args.old)
                time.sleep(3)
                say(f"back: protocols {protocols(cluster)}")
        finally:
            run.stop.set()
        for thread in threads:
            thread.join()
        checked = run.at_rest()
        took = sorted(seconds for _, seconds in run.latencies)
        worst_gap = max((gap for _, gap in run.gaps), default=0)
        say(f"{json.dumps(run.counts)}; {checked} answers compared at rest")
        say(f"GETs: median {took[len(took) // 2] * 1000:.1f} ms, worst {took[-1]:.2f} s; failed (over 1 s, or never) {run.counts['gets failed'] / len(took):.4%}; viewers: longest wait {worst_gap:.2f} s")
        kept = not run.wrong and run.counts["gets failed"] <= len(took) * 0.0001 and worst_gap <= 1.0
        say(f"{'kept' if kept else 'NOT kept'}: {len(run.wrong)} wrong; seed {args.seed}")
        sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
