#!/usr/bin/env python3
"""A gateway between clients and a storage node, beside nginx's `proxy_pass` to the same node (HTTP/1.1, keepalive, 64 KiB
buffers, no temporary files): CPU seconds per GB of the proxy. Proxies on one core in turn; node and load on the other."""

import argparse
import os

from common import *

SIZES = {"1 MiB": 1 << 20, "64 MiB": 64 << 20}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    args = parser.parse_args()
    need("wrk", "nginx", "taskset", REEL)
    with Bench() as bench:
        # The node takes part on the load's core.
        node, port, gateway, http_port = bench.reel(http_core=SERVER_CORE)
        subprocess.run(["taskset", "-apc", LOAD_CORE, str(node.pid)], check=True, capture_output=True)
        for size in SIZES.values():
            put(port, f"films/{size}.mp4", os.urandom(size))
        _, workers, nginx_port = bench.nginx(bench.dir, f"upstream node {{ server 127.0.0.1:{port}; keepalive 32; }}",
            body="location / { proxy_pass http://node; proxy_http_version 1.1; proxy_set_header Connection ''; "
            "proxy_buffer_size 64k; proxy_buffers 8 64k; proxy_busy_buffers_size 128k; proxy_max_temp_file_size 0; }")
        for name, size in SIZES.items():
            ratios = []
            for round_ in range(args.rounds + 1):
                cost = {}
                for who, at, pids in (("nginx", nginx_port, workers), ("reel", http_port, [gateway.pid])):
                    before = sum(threads_cpu(pid) for pid in pids)
                    got = wrk(f"http://127.0.0.1:{at}/films/{size}.mp4", 16, 1 if round_ == 0 else args.seconds)
                    assert got["bad"] == 0, got["text"]
                    gigabytes = got["requests"] * size / 1e9
                    cost[who] = (sum(threads_cpu(pid) for pid in pids) - before) / max(gigabytes, 1e-9)
                if round_:
                    ratios.append(cost["reel"] / cost["nginx"])
                    say(f"  {name} round {round_}: {cost['reel']:.3f} against {cost['nginx']:.3f} CPU-s/GB")
            say(f"{name}: CPU per GB beside nginx {spread(ratios)}")


if __name__ == "__main__":
    main()
