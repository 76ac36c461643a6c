#!/usr/bin/env python3
"""The cold storm: 8 hot connections on a 4 KiB file, while 64 readers take random 1 MiB ranges of a film that is
kept out of the page cache, all through one shard (one worker) on one core. Beside it nginx, with sendfile alone
and with `aio threads`."""

import argparse
import os
import threading

from common import *

HOT, READERS, FILM = 8, 64, 2 << 30
# A virtual machine gives dropped pages back to its host, which for gigabytes takes so much of its processors that both stand
# still for 34 ms of each 100 for a while (`steal`): seconds until that is over.
SETTLE = 15


def drop(paths):
    """Gives the pages of files up, written or not."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def steal():
    """Milliseconds that other machines have had of this one's processors."""
    with open("/proc/stat") as stat:
        return int(stat.readline().split()[8]) * 1000 // os.sysconf("SC_CLK_TCK")


def keep_cold(paths, stop):
    """Gives the film's pages up again and again."""
    files = [os.open(path, os.O_RDONLY) for path in paths]
    while not stop.is_set():
        for file in files:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        stop.wait(0.02)
    for file in files:
        os.close(file)


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--dir", help="a folder on the disk to measure")
    args = parser.parse_args()
    need("wrk", "nginx", "taskset", REEL)
    # This script's own work belongs to the load.
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    with Bench(args.dir) as bench:
        root = bench.dir / "www"
        root.mkdir()
        node, port, _, _ = bench.reel()
        small = os.urandom(4096)
        (root / "hot.mp4").write_bytes(small)
        put(port, "films/hot.mp4", small)
        film = root / "film.mp4"
        make_film(film, FILM)
        upload(film, f"http://127.0.0.1:{port}/films/film.mp4")
        segment = largest(bench.dir / "data")
        script = bench.dir / "ranges.lua"
        script.write_text(f"""
math.randomseed(os.time() + tonumber(tostring({{}}):sub(8), 16) % 100000)
request = function()
  local from = math.random(0, {(FILM >> 20) - 2}) * 1048576
  return wrk.format("GET", nil, {{["Range"] = "bytes=" .. from .. "-" .. (from + 1048575)}})
end
""")
        _, plain, plain_port = bench.nginx(root)
        _, aio, aio_port = bench.nginx(root, "aio threads;")
        servers = {
            "reel": (port, "films/", [node.pid]),
            "nginx": (plain_port, "", plain),
            "nginx aio threads": (aio_port, "", aio),
        }
        drop([film, segment])
        time.sleep(SETTLE)
        found = {name: {"alone": [], "rate": [], "p99": [], "cold": []} for name in servers}
        for round_ in range(1, args.rounds + 1):
            for name, (at, prefix, _) in servers.items():
                hot = f"http://127.0.0.1:{at}/{prefix}hot.mp4"
                cold = f"http://127.0.0.1:{at}/{prefix}film.mp4"
                alone = wrk(hot, HOT, args.seconds)
                stop = threading.Event()
                keeper = threading.Thread(target=keep_cold, args=([film, segment], stop))
                keeper.start()
                storm = {}
                readers = threading.Thread(target=lambda: storm.update(wrk(cold, READERS, args.seconds + 2, script)))
                readers.start()
                time.sleep(1)
                stolen = steal()
                during = wrk(hot, HOT, args.seconds)
                stolen = steal() - stolen
                readers.join()
                stop.set()
                keeper.join()
                assert alone["bad"] == 0 and during["bad"] == 0 and storm["bad"] == 0, (alone, during, storm["text"])
                mb = storm["rate"] * 1.048576
                for key, value in (("alone", alone["rate"]), ("rate", during["rate"]), ("p99", during["p99_ms"]), ("cold", mb)):
                    found[name][key].append(value)
                say(f"  round {round_} {name}: hot alone {alone['rate']:.0f}/s, in the storm {during['rate']:.0f}/s ({during['rate'] / alone['rate']:.0%}), p99 {during['p99_ms']:.2f} ms; cold {mb:.0f} MB/s, steal {stolen} ms")
        for name, values in found.items():
            share = [during / alone for during, alone in zip(values["rate"], values["alone"])]
            say(f"{name}: hot p99 {spread(values['p99'])} ms, {spread(share)} of its rate alone; cold {spread(values['cold'], 0)} MB/s")
        better = [max(a, b) for a, b in zip(found["nginx"]["cold"], found["nginx aio threads"]["cold"])]
        say(f"cold bytes beside nginx's better mode: {spread([ours / theirs for ours, theirs in zip(found['reel']['cold'], better)])}")


if __name__ == "__main__":
    main()
