#!/usr/bin/env python3
"""GETs by name of cached files, beside nginx with sendfile: server CPU per request, requests a second.

Both on the same core in turn, wrk on the other. Ratios are Reelstore's figure over nginx's of the same
round; below 1 is better for CPU, above 1 for the rate. At 4 KiB a bare loop (`reel-bench bare`: read, send from
memory, nothing else) takes its turn too: what the kernel leaves to be won. There wrk's core is full before the server's; so
all are asked by `reel-bench askers` as well, which spends less on a request. What the load spends on a request is printed
too, and what follows from it: where its core is full, as a multiple of nginx's rate. No server can be asked more often.

Where the two cores share a cache, and where they do not, are two different machines; a virtual machine's host moves
its cores between them. It is asked before and after each turn (`reel-bench cores`); a round in which it changed compares
nothing and is set aside. Rounds go on until `--rounds` of them had a shared cache, at most `--most`."""

import argparse
import os

from common import *

SIZES = {"4 KiB": 4096, "64 KiB": 65536, "1 MiB": 1 << 20, "16 MiB": 16 << 20}
CONNECTIONS = {"16 MiB": 16}
SHARED, APART, CHANGED = "cores that share a cache", "cores apart", "cores moved"


def by_wrk(at, path, connections, seconds):
    got = wrk(f"http://127.0.0.1:{at}/{path}", connections, seconds)
    assert got["bad"] == 0, got["text"]
    return got["requests"], got["rate"], f", p99 {got['p99_ms']:.2f} ms"


def by_askers(at, path, connections, seconds):
    answers, took = askers(at, path, connections, seconds)
    return answers, answers / took, ""


def ended_cpu():
    """User and system seconds of this script's processes that have ended: of the load, and of what little the script itself asks."""
    times = os.times()
    return times.children_user + times.children_system


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, default=30, help="rounds at most, whatever the cores did")
    parser.add_argument("--seconds", type=float, default=2, help="of a turn")
    parser.add_argument("--sizes", default=",".join(SIZES))
    args = parser.parse_args()
    need("wrk", "nginx", "taskset", REEL, BENCH)
    with Bench() as bench:
        root = bench.dir / "www"
        (root / "films").mkdir(parents=True)
        node, port, _, _ = bench.reel()
        for size in args.sizes.split(","):
            data = os.urandom(SIZES[size])
            (root / "films" / f"{SIZES[size]}.mp4").write_bytes(data)
            put(port, f"films/{SIZES[size]}.mp4", data)
        _, workers, nginx_port = bench.nginx(root)
        for size in args.sizes.split(","):
            path, connections = f"films/{SIZES[size]}.mp4", CONNECTIONS.get(size, 64)
            servers = [("nginx", nginx_port, workers), ("reel", port, [node.pid])]
            loads = [("wrk", by_wrk)]
            if SIZES[size] == 4096:
                at = free_port()
                bare = bench.start([BENCH, "bare", "--listen", f"127.0.0.1:{at}", "--bytes", str(SIZES[size])], SERVER_CORE)
                wait_for(at)
                servers.append(("bare", at, [bare.pid]))
                loads.append(("askers", by_askers))
            found = {}
            for round_ in range(args.most + 1):
                got_by, apart = {}, [cores_apart()]
                for load, ask in loads:
                    for name, at, pids in servers:
                        before, load_before = sum(threads_cpu(pid) for pid in pids), ended_cpu()
                        requests, rate, p99 = ask(at, path, connections, args.seconds if round_ else 1)
                        used, load_used = sum(threads_cpu(pid) for pid in pids) - before, ended_cpu() - load_before
                        got_by[load, name] = (used / requests * 1e6, rate, requests / load_used, p99)
                        apart.append(cores_apart())
                if round_ == 0:
                    continue
                state = CHANGED if len(set(apart)) > 1 else APART if apart[0] else SHARED
                for load, _ in loads:
                    say(f"  {size} by {load}, round {round_}, {state}: " + "; ".join(f"{name} {cpu:.2f} us of CPU a request (the load {1e6 / most:.2f}), {rate:.0f} requests/s{p99}" for (by, name), (cpu, rate, most, p99) in got_by.items() if by == load))
                if state != CHANGED:
                    found.setdefault(state, []).append(got_by)
                if len(found.get(SHARED, [])) == args.rounds:
                    break
            for state, rounds in found.items():
                for load, _ in loads:
                    for name, _, _ in servers[1:]:
                        cpu, rate = (spread([got[load, name][what] / got[load, "nginx"][what] for got in rounds]) for what in (0, 1))
                        full = spread([got[load, name][2] / got[load, "nginx"][1] for got in rounds])
                        say(f"{size} by {load}, {state}, {len(rounds)} rounds, {name} beside nginx: CPU {cpu}; rate {rate}; the load's core is full at {full}")


if __name__ == "__main__":
    main()
