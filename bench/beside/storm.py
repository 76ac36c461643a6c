#!/usr/bin/env python3
"""The cold storm: 8 hot connections on a 4 KiB file, while 64 readers take random 1 MiB ranges of a film that is
kept out of the page cache, all through one shard (one worker) on one core. Beside it nginx, with sendfile alone
and with `aio threads`.

Both cores and the disk are busy, so a virtual machine's host may stop it (`stills.py`); `wrk` counts that as the server's
time. So each storm is asked by `reel-bench askers` as well, and what the machine stood still is taken out of the figures in
"time that the machine ran", of all three servers. What the disk gives at most while both cores are busy is asked of `fio`,
which reads the same ranges past the page cache, beside the bare loop (`reel-bench bare`) and its askers."""

import argparse
import math
import os
import threading

from common import *
from stills import NEVER, Watch, p99_ms, read_times

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


def keep_cold(paths, stop):
    """Gives the film's pages up again and again."""
    files = [os.open(path, os.O_RDONLY) for path in paths]
    while not stop.is_set():
        for file in files:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        stop.wait(0.02)
    for file in files:
        os.close(file)


def by_wrk(at, path, seconds, _times):
    got = wrk(f"http://127.0.0.1:{at}/{path}", HOT, seconds)
    assert got["bad"] == 0, got["text"]
    return got["rate"], lambda stills: got["p99_ms"] if stills is NEVER else math.nan


def by_askers(at, path, seconds, file):
    answers, took = askers(at, path, HOT, seconds, file)
    return answers / took, lambda stills: p99_ms(read_times(file), HOT, stills)


WAYS = {"wrk": by_wrk, "askers": by_askers}
# What wrk says of its answers says nothing of single ones: it has no p99 of the second kind.
ALL, RAN = "all the time", "time that the machine ran"


def ask_hot(way, at, path, seconds, file):
    """Rate and p99 in milliseconds by all the time and by that which the machine ran, and the share of time in which it stood still."""
    watch, began = Watch(seconds + 0.5), time.monotonic()
    rate, p99 = WAYS[way](at, path, seconds, file)
    ended, stills = time.monotonic(), watch.stills()
    still = stills.between(began, ended) / (ended - began)
    return {ALL: (rate, p99(NEVER)), RAN: (rate / (1 - still), p99(stills)), "still": still}


def disk(bench, film, seconds):
    """MB/s, in time that the machine ran."""
    at = free_port()
    bare = bench.start([BENCH, "bare", "--listen", f"127.0.0.1:{at}", "--bytes", "4096"], SERVER_CORE)
    wait_for(at)
    args = ["taskset", "-c", SERVER_CORE, "fio", "--name=disk", f"--filename={film}", "--readonly", "--rw=randread", "--bs=1M", "--direct=1", "--ioengine=io_uring", f"--iodepth={READERS}", "--time_based", f"--runtime={seconds + 2}", "--output-format=json"]
    with subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as fio:
        time.sleep(1)
        still = ask_hot("askers", at, "", seconds, bench.dir / "times")["still"]
        text, _ = fio.communicate(timeout=60)
    bare.stop()
    return json.loads(text)["jobs"][0]["read"]["bw_bytes"] / 1e6 / (1 - still)


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--dir", help="a folder on the disk to measure")
    args = parser.parse_args()
    need("wrk", "nginx", "taskset", "fio", REEL, BENCH)
    # This script's own work belongs to the load.
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    with Bench(args.dir) as bench:
        root = bench.dir / "www"
        root.mkdir()
        _, port, _, _ = bench.reel()
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
        _, _, plain_port = bench.nginx(root)
        _, _, aio_port = bench.nginx(root, "aio threads;")
        servers = {
            "reel": (port, "films/"),
            "nginx": (plain_port, ""),
            "nginx aio threads": (aio_port, ""),
        }
        drop([film, segment])
        time.sleep(SETTLE)
        found, at_most = {}, []
        for round_ in range(1, args.rounds + 1):
            for way in WAYS:
                for name, (at, prefix) in servers.items():
                    hot = (way, at, f"{prefix}hot.mp4", args.seconds, bench.dir / "times")
                    alone = ask_hot(*hot)
                    stop = threading.Event()
                    keeper = threading.Thread(target=keep_cold, args=([film, segment], stop))
                    keeper.start()
                    storm = {}
                    cold = f"http://127.0.0.1:{at}/{prefix}film.mp4"
                    readers = threading.Thread(target=lambda: storm.update(wrk(cold, READERS, args.seconds + 2, script)))
                    readers.start()
                    time.sleep(1)
                    during = ask_hot(*hot)
                    readers.join()
                    stop.set()
                    keeper.join()
                    assert storm["bad"] == 0, storm["text"]
                    mb = storm["rate"] * 1.048576
                    for account in (ALL, RAN):
                        (before, _), (rate, p99) = alone[account], during[account]
                        ran = mb / (1 - during["still"]) if account == RAN else mb
                        found.setdefault((way, account, name), []).append((p99, rate / before, ran))
                    say(f"  round {round_} by {way}, {name}: hot alone {alone[ALL][0]:.0f}/s, in the storm {during[ALL][0]:.0f}/s, p99 {during[ALL][1]:.2f} ms{'' if math.isnan(during[RAN][1]) else f' ({during[RAN][1]:.2f} of time that the machine ran)'}; cold {mb:.0f} MB/s; the machine stood still {during['still']:.0%} of the time")
            at_most.append(disk(bench, film, args.seconds))
        for way in WAYS:
            for account in (ALL, RAN):
                cold = {}
                for name in servers:
                    p99s, shares, cold[name] = zip(*found[way, account, name])
                    say(f"by {way}, {account}, {name}: {'' if math.isnan(p99s[0]) else f'hot p99 {spread(p99s)} ms, '}{spread(shares)} of its rate alone; cold {spread(cold[name], 0)} MB/s")
                better = [max(pair) for pair in zip(cold["nginx"], cold["nginx aio threads"])]
                say(f"by {way}, {account}, cold bytes beside nginx's better mode: {spread([ours / theirs for ours, theirs in zip(cold['reel'], better)])}")
        say(f"the disk past the page cache, both cores busy, time that the machine ran: {spread(at_most, 0)} MB/s")


if __name__ == "__main__":
    main()
