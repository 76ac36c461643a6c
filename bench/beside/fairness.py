#!/usr/bin/env python3
"""Fairness: 200 slow readers (64 KiB every 50 ms each, of one film) through one shard on one core, alone and beside
one fast reader that takes a huge object as fast as it comes. The slow ones' rate is what counts; nginx beside it."""

import argparse
import json

from common import *

FILM, SLOW = 2 << 30, 200


def slow_readers(args, at, path):
    command = ["taskset", "-c", LOAD_CORE, BENCH, "viewers", "--server", f"127.0.0.1:{at}", "--path", path, "--film", str(FILM)]
    command += ["--from", str(SLOW), "--to", str(SLOW), "--hold", str(args.seconds), "--piece", "65536", "--every", "50"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    args = parser.parse_args()
    need("nginx", "taskset", "curl", REEL, BENCH)
    with Bench() as bench:
        root = bench.dir / "www"
        root.mkdir()
        film = root / "film.mp4"
        make_film(film, FILM)
        node, port, _, _ = bench.reel()
        upload(film, f"http://127.0.0.1:{port}/films/film.mp4")
        _, _, nginx_port = bench.nginx(root)
        servers = {"reel": (port, "/films/film.mp4"), "nginx": (nginx_port, "/film.mp4")}
        # Both in the page cache: what is fair about the disk is the storm's to show.
        for at, path in servers.values():
            warm(f"http://127.0.0.1:{at}{path}")
        found = {name: [] for name in servers}
        for round_ in range(args.rounds + 1):
            for name, (at, path) in servers.items():
                alone = slow_readers(args, at, path)
                # Bytes a fast reader takes: it throws them away in large pieces.
                fast = subprocess.Popen(["taskset", "-c", LOAD_CORE, BENCH, "viewers", "--server", f"127.0.0.1:{at}", "--path", path, "--film", str(FILM),
                                         "--from", "1", "--to", "1", "--piece", str(FILM - 1), "--every", "1", "--hold", str(args.seconds + 2)], stdout=subprocess.PIPE, text=True)
                time.sleep(0.5)
                beside = slow_readers(args, at, path)
                fast_rate = json.loads(fast.communicate()[0])["rate"]
                if round_ == 0:
                    continue
                found[name].append(beside["rate"] / alone["rate"])
                say(f"  round {round_} {name}: slow ones alone {alone['rate'] / 1e6:.0f} MB/s (p99 {alone['p99_ms']} ms), beside the fast one {beside['rate'] / 1e6:.0f} MB/s (p99 {beside['p99_ms']} ms); the fast one {fast_rate / 1e6:.0f} MB/s")
        for name, values in found.items():
            say(f"{name}: the slow ones keep {spread(values, 3)} of their rate")


if __name__ == "__main__":
    main()
