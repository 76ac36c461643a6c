#!/usr/bin/env python3
"""Trackers come to the same picture: random sequences of joins, losses, restarts and cut cables of nodes and trackers;
two seconds after it calms the dumps of all trackers are compared byte for byte."""

import argparse
import random
import sys
import time
import urllib.request

import hosts
from cluster import Cluster
from hosts import Lab, say


def dump(member):
    with urllib.request.urlopen(f"http://{member.address}/-/v1/nodes", timeout=2) as answer:
        return answer.read()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    hosts.enter("the trackers test")
    rng = random.Random(args.seed)
    differed = 0
    with Lab() as lab:
        cluster = Cluster(lab, trackers=3, ids=1, groups=2, nodes=3, https=0, virtual=False, disk_mib=256, storage='lease = 16')
        begun = time.monotonic()
        for sequence in range(args.sequences):
            steps = []
            changed = set()
            for _ in range(rng.randrange(2, 6)):
                member = rng.choice(cluster.of("tracker") + cluster.of("storage"))
                if member in changed:
                    continue
                changed.add(member)
                kind = rng.choice(["restart", "stop", "cut", "freeze"])
                steps.append(f"{kind} {member.host.name}")
                {"restart": member.die, "stop": member.die, "cut": member.host.cut, "freeze": member.host.freeze}[kind]()
                time.sleep(rng.random() * 0.5)
                if kind == "restart":
                    member.start()
                elif kind == "cut":
                    time.sleep(rng.random())
                    member.host.heal()
                elif kind == "freeze":
                    time.sleep(rng.random())
                    member.host.thaw()
                elif member.kind == "tracker":
                    member.start()
            # It has calmed: stopped nodes stay silent.
            time.sleep(2)
            dumps = {member.host.name: dump(member) for member in cluster.of("tracker")}
            if len(set(dumps.values())) != 1:
                differed += 1
                say(f"sequence {sequence} ({', '.join(steps)}): the trackers differ")
                for name, text in dumps.items():
                    say(f"    {name}: {text.decode()[:2000]}")
            for member in cluster.of("storage"):
                if not member.wanted:
                    member.start()
        say(f"{args.sequences} sequences in {time.monotonic() - begun:.0f} s, {differed} with trackers that differ (seed {args.seed})")
    sys.exit(1 if differed else 0)


if __name__ == "__main__":
    main()
