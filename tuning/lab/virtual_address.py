#!/usr/bin/env python3
"""How long clients are without their HTTP servers, and without their trackers, when the machine that has the shared
address fails: its process killed, its process frozen, its cable out. A player (ffmpeg, in real time) watches through it."""

import argparse
import shutil
import subprocess
import sys
import threading
import time
import urllib.request

import hosts
from cluster import HTTP_ADDRESS, HTTP_PORT, TRACKER_ADDRESS, TRACKER_PORT, Cluster
from hosts import Lab, say, until


class Asker(threading.Thread):
    """Asks every 20 ms on a new connection; remembers the longest time without an answer."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.longest, self.last = url, 0.0, time.monotonic()
        self.ended = threading.Event()

    def run(self):
        while not self.ended.wait(0.02):
            try:
                with urllib.request.urlopen(self.url, timeout=0.2) as answer:
                    answer.read()
                now = time.monotonic()
                self.longest, self.last = max(self.longest, now - self.last), now
            except OSError:
                pass

    def begin(self):
        self.longest, self.last = 0.0, time.monotonic()


def holder(members, address):
    """Who has the shared address now."""
    for member in members:
        if f" {address}/" in member.host.run("ip", "-4", "addr", "show", "dev", "eth0").stdout:
            return member
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    hosts.enter("the virtual address test")
    for program in ("keepalived", "ffmpeg"):
        if shutil.which(program) is None:
            sys.exit(f"needs {program} (apt-get install {program})")
    good = True
    with Lab() as lab:
        cluster = Cluster(lab, trackers=3, ids=1, groups=1, nodes=2, https=2, ack="2")
        film = lab.dir / "film.mp4"
        make = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25", "-t", "600", "-g", "50", "-c:v", "mpeg4", "-b:v", "1M"]
        subprocess.run([*make, "-movflags", "+faststart", str(film)], check=True)
        url = f"http://{HTTP_ADDRESS}:{HTTP_PORT}"
        with urllib.request.urlopen(urllib.request.Request(f"{url}/ann/film.mp4", film.read_bytes(), method="PUT"), timeout=60) as answer:
            assert answer.status == 201
        # Players reconnect; this is how ffmpeg is told to.
        retry = ["-reconnect", "1", "-reconnect_on_network_error", "1", "-reconnect_delay_max", "1", "-rw_timeout", "1000000"]
        player = subprocess.Popen(["ffmpeg", "-v", "error", "-re", *retry, "-i", f"{url}/ann/film.mp4", "-f", "null", "-progress", str(lab.dir / "progress"), "-"], stdin=subprocess.DEVNULL)
        parts = (
            ("HTTP server", cluster.of("http"), HTTP_ADDRESS, f"{url}/ann/film.mp4?download=1"),
            ("tracker", cluster.of("tracker"), TRACKER_ADDRESS, f"http://{TRACKER_ADDRESS}:{TRACKER_PORT}/-/v1/nodes"),
        )
        for what, members, address, asked in parts:
            if "film" in asked:
                asked = f"{url}/ann/small"
                with urllib.request.urlopen(urllib.request.Request(asked, b"small", method="PUT"), timeout=10):
                    pass
            asker = Asker(asked)
            asker.start()
            for kind, limit in (("killed", 1.0), ("frozen", 2.0), ("cut off", 2.0)):
                gaps = []
                for _ in range(args.rounds):
                    time.sleep(4)
                    member = until(f"somebody has {address}", lambda: holder(members, address))
                    asker.begin()
                    if kind == "killed":
                        member.die()
                    elif kind == "frozen":
                        member.child.send_signal(19)
                    else:
                        member.host.cut()
                    time.sleep(4)
                    gaps.append(max(asker.longest, time.monotonic() - asker.last))
                    if kind == "killed":
                        member.start()
                    elif kind == "frozen":
                        member.child.send_signal(18)
                    else:
                        member.host.heal()
                    until(f"{member.host.name} is well", member.is_well)
                kept = max(gaps) <= limit
                good &= kept
                say(f"{what} {kind}: clients go on after {', '.join(f'{gap:.2f}' for gap in sorted(gaps))} s (limit {limit:.0f} s){'' if kept else ' NOT KEPT'}")
            asker.ended.set()
        playing = player.poll() is None
        progress = (lab.dir / "progress").read_text()
        at = [int(line.split("=")[1]) / 1e6 for line in progress.splitlines() if line.startswith("out_time_us=") and line.split("=")[1].isdigit()]
        say(f"the player {'plays on' if playing else f'ended with {player.returncode}'}, at {at[-1] if at else 0:.0f} s of the film")
        good &= playing
        player.kill()
        player.wait()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
