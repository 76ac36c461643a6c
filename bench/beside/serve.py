#!/usr/bin/env python3
"""GETs by name of cached files, beside nginx with sendfile: server CPU per request, requests a second.

Both on the same core in turn, wrk on the other. Ratios are Reelstore's figure over nginx's of the same
round; below 1 is better for CPU, above 1 for the rate."""

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
    need("wrk", "nginx", "taskset", REEL)
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
            found = {"cpu": [], "rate": []}
            for round_ in range(args.rounds + 1):
                seconds = 1 if round_ == 0 else args.seconds
                both = {}
                for name, at, pids in (("nginx", nginx_port, workers), ("reel", port, [node.pid])):
                    before = sum(threads_cpu(pid) for pid in pids)
                    got = wrk(f"http://127.0.0.1:{at}/{path}", connections, seconds)
                    assert got["bad"] == 0, got["text"]
                    used = sum(threads_cpu(pid) for pid in pids) - before
                    both[name] = (used / got["requests"] * 1e6, got["rate"], got["p99_ms"])
                if round_ == 0:
                    continue
                (ours, our_rate, our_p99), (theirs, their_rate, their_p99) = both["reel"], both["nginx"]
                found["cpu"].append(ours / theirs)
                found["rate"].append(our_rate / their_rate)
                say(f"  {size} round {round_}: CPU {ours:.2f} against {theirs:.2f} us a request; {our_rate:.0f} against {their_rate:.0f} requests/s; p99 {our_p99:.2f} against {their_p99:.2f} ms")
            say(f"{size}: CPU ratio {spread(found['cpu'])}; rate ratio {spread(found['rate'])}")


if __name__ == "__main__":
    main()
