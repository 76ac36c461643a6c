#!/usr/bin/env python3
"""GETs by name of cached files, beside nginx with sendfile: server CPU per request, requests a second.

Both on the same core in turn, wrk on the other. Ratios are Reelstore's figure over nginx's of the same
round; below 1 is better for CPU, above 1 for the rate. At 4 KiB a bare loop (`reel-bench bare`: read, send from
memory, nothing else) takes its turn too: what the kernel leaves to be won."""

import argparse
import os

from common import *

SIZES = {"4 KiB": 4096, "64 KiB": 65536, "1 MiB": 1 << 20, "16 MiB": 16 << 20}
CONNECTIONS = {"16 MiB": 16}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
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
            if SIZES[size] == 4096:
                at = free_port()
                bare = bench.start([BENCH, "bare", "--listen", f"127.0.0.1:{at}", "--bytes", str(SIZES[size])], SERVER_CORE)
                wait_for(at)
                servers.append(("bare", at, [bare.pid]))
            found = {name: {"cpu": [], "rate": []} for name, _, _ in servers[1:]}
            for round_ in range(args.rounds + 1):
                seconds = 1 if round_ == 0 else args.seconds
                got_by = {}
                for name, at, pids in servers:
                    before = sum(threads_cpu(pid) for pid in pids)
                    got = wrk(f"http://127.0.0.1:{at}/{path}", connections, seconds)
                    assert got["bad"] == 0, got["text"]
                    used = sum(threads_cpu(pid) for pid in pids) - before
                    got_by[name] = (used / got["requests"] * 1e6, got["rate"], got["p99_ms"])
                if round_ == 0:
                    continue
                their_cpu, their_rate, _ = got_by["nginx"]
                for name, values in found.items():
                    values["cpu"].append(got_by[name][0] / their_cpu)
                    values["rate"].append(got_by[name][1] / their_rate)
                say(f"  {size} round {round_}: " + "; ".join(f"{name} {cpu:.2f} us of CPU a request, {rate:.0f} requests/s, p99 {p99:.2f} ms" for name, (cpu, rate, p99) in got_by.items()))
            for name, values in found.items():
                say(f"{size}, {name} beside nginx: CPU {spread(values['cpu'])}; rate {spread(values['rate'])}")


if __name__ == "__main__":
    main()
