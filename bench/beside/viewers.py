#!/usr/bin/env python3
"""Viewers at 2 Mbit/s (500 kB every 2 s) of a film in the page cache, through one worker on one core, the
generator (`reel-bench viewers`) on the other: raised step by step until the first stalls.

Where the descriptors end before anybody stalls, larger pieces (`--piece`) tell the servers apart."""

import argparse
import json

from common import *

FILM = 1 << 30


def climb(args, at, path, pid):
    """The highest number of viewers without a stall, and memory a connection at it."""
    command = ["taskset", "-c", LOAD_CORE, BENCH, "viewers", "--server", f"127.0.0.1:{at}", "--path", path, "--film", str(FILM)]
    command += ["--from", str(args.begin), "--step", str(args.step), "--to", str(args.end), "--hold", str(args.hold), "--piece", str(args.piece)]
    before = memory_kib(pid)
    best, memory = 0, float("nan")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if not line.startswith("{"):
                # A server that refuses or closes connections does not hold so many.
                say(f"    {line.strip()}")
                break
            step = json.loads(line)
            held = memory_kib(pid)
            say(f"    {line.strip()} memory {(held - before) / step['viewers']:.2f} KiB a connection")
            if step["stalled"] == 0:
                best, memory = step["viewers"], (held - before) / step["viewers"]
    return best, memory


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--begin", type=int, default=11800)
    parser.add_argument("--end", type=int, default=19800, help="each viewer is a descriptor here and one at the server: `ulimit -Hn` may hold fewer")
    parser.add_argument("--step", type=int, default=1000)
    # An overload of a tenth shows as a stall after 20 s: that long a backlog takes to grow to the time of a piece.
    parser.add_argument("--hold", type=int, default=30, help="seconds that each number of viewers is held")
    parser.add_argument("--piece", type=int, default=500_000, help="bytes every 2 s")
    args = parser.parse_args()
    need("nginx", "taskset", "curl", REEL, BENCH)
    # Each viewer is a descriptor here and one at the server.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with Bench() as bench:
        root = bench.dir / "www"
        root.mkdir()
        film = root / "film.mp4"
        make_film(film, FILM)
        found = {"reel": [], "nginx": []}
        for round_ in range(1, args.rounds + 1):
            for name in ("nginx", "reel"):
                # A server of its own each time: what it holds for others' connections does not count.
                with Bench() as inner:
                    if name == "reel":
                        node, at, _, _ = inner.reel("limits.connections = 20000")
                        pid, path = node.pid, "/films/film.mp4"
                        url = f"http://127.0.0.1:{at}{path}"
                        upload(film, url)
                    else:
                        _, (pid,), at = inner.nginx(root)
                        path = "/film.mp4"
                        url = f"http://127.0.0.1:{at}{path}"
                    warm(url)
                    say(f"  round {round_} {name}")
                    best, memory = climb(args, at, path, pid)
                    found[name].append((best, memory))
                    say(f"  round {round_} {name}: {best} viewers without a stall, {memory:.2f} KiB a connection")
        for name, values in found.items():
            say(f"{name}: {spread([best for best, _ in values], 0)} viewers; {spread([memory for _, memory in values])} KiB of process memory a connection")
        both = [(ours, theirs) for (ours, _), (theirs, _) in zip(found["reel"], found["nginx"]) if theirs]
        if len(both) < args.rounds:
            say(f"in {args.rounds - len(both)} rounds nginx did not hold {args.begin} viewers: a lower --begin finds its number")
        if both:
            say(f"ratio {spread([ours / theirs for ours, theirs in both])}")


if __name__ == "__main__":
    main()
