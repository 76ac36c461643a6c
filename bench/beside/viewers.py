#!/usr/bin/env python3
"""Viewers at 2 Mbit/s (500 kB every 2 s) of a film in the page cache, through one worker on one core, the
generator (`reel-bench viewers`) on the other: raised step by step until the first stalls.

Where the descriptors end before anybody stalls, larger pieces (`--piece`) tell the servers apart."""

import argparse
import json

from common import *

FILM = 1 << 30


class Served:
    """A server with its viewers, and the highest number of them that it held without a stall."""

    def __init__(self, bench, args, at, pid, path):
        self.pid = pid
        warm(f"http://127.0.0.1:{at}{path}")
        self.before = memory_kib(pid)
        self.best, self.memory = 0, float("nan")
        command = ["taskset", "-c", LOAD_CORE, BENCH, "viewers", "--told", "--server", f"127.0.0.1:{at}", "--path", path, "--film", str(FILM)]
        command += ["--hold", str(args.hold), "--piece", str(args.piece)]
        self.viewers = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        bench.running.append(self)

    def stop(self):
        """Its viewers leave."""
        self.viewers.kill()
        self.viewers.wait()

    def holds(self, name, viewers):
        """Whether so many are served without a stall; and memory a connection."""
        self.viewers.stdin.write(f"{viewers}\n")
        self.viewers.stdin.flush()
        line = self.viewers.stdout.readline().strip()
        if not line.startswith("{"):
            # A server that refuses or closes connections does not hold so many.
            say(f"    {name} {line}")
            return False
        memory = (memory_kib(self.pid) - self.before) / viewers
        say(f"    {name} {line} memory {memory:.2f} KiB a connection")
        if json.loads(line)["stalled"] > 0:
            return False
        self.best, self.memory = viewers, memory
        return True


def read_whole(folder):
    """Brings what lies there into the page cache, to the last page: a place that is missing is read from the disk by each viewer."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                while file.read(1 << 20):
                    pass


def climb(args, servers):
    """Raises the number of viewers step by step, each step for one server after the other: the machine's host changes from one
    minute to the next what it grants."""
    climbing = list(servers)
    for viewers in range(args.begin, args.end + 1, args.step):
        # Who goes first changes, too.
        climbing.reverse()
        climbing = [name for name in climbing if servers[name].holds(name, viewers)]


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
            say(f"  round {round_}")
            # Servers of their own each time: what they hold for others' connections does not count.
            with Bench() as inner:
                _, (pid,), at = inner.nginx(root)
                nginx = Served(inner, args, at, pid, "/film.mp4")
                node, at, _, _ = inner.reel("limits.connections = 20000")
                upload(film, f"http://127.0.0.1:{at}/films/film.mp4")
                servers = {"nginx": nginx, "reel": Served(inner, args, at, node.pid, "/films/film.mp4")}
                read_whole(root)
                read_whole(inner.dir)
                climb(args, servers)
            for name, server in servers.items():
                found[name].append((server.best, server.memory))
                say(f"  round {round_} {name}: {server.best} viewers without a stall, {server.memory:.2f} KiB a connection")
        for name, values in found.items():
            say(f"{name}: {spread([best for best, _ in values], 0)} viewers; {spread([memory for _, memory in values])} KiB of process memory a connection")
        both = [(ours, theirs) for (ours, _), (theirs, _) in zip(found["reel"], found["nginx"]) if theirs]
        if len(both) < args.rounds:
            say(f"in {args.rounds - len(both)} rounds nginx did not hold {args.begin} viewers: a lower --begin finds its number")
        if both:
            say(f"ratio {spread([ours / theirs for ours, theirs in both])}")


if __name__ == "__main__":
    main()
