#!/usr/bin/env python3
"""Own replication with ack = "all" beside GlusterFS replica 3, on the same hosts in one run: large files, small files,
and how long after the answer (the close) the other nodes show what was written."""

import argparse
import http.client
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time

import hosts
from cluster import Cluster
from gluster import Volume
from hosts import Lab, say

HERE = pathlib.Path(__file__).resolve().parent
# What all disks together may take with --memory.
MEMORY = "16g"
# Large files of a round, and how large.
FILES, MIB = 24, 64
PUTS = """
local thread = 0
function setup(t) t:set("id", thread); thread = thread + 1 end
local count = 0
request = function()
  count = count + 1
  return wrk.format("PUT", "/ann/" .. run .. "/" .. id .. "/" .. count, nil, body)
end
function init(args) run = args[1]; body = string.rep("x", 4096) end
"""


def spread(values, digits=1):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def small_puts(address, lua, run, seconds):
    text = subprocess.run(["wrk", "-t1", "-c64", f"-d{seconds}s", "--timeout", "20s", "-s", str(lua), f"http://{address}", "--", str(run)], capture_output=True, text=True, check=True).stdout
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    assert refused is None, text
    return float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])


def lag(writer, readers, run, count):
    """Milliseconds from the answer until each other node itself has the object."""
    took = []
    conns = {reader: http.client.HTTPConnection(reader, timeout=10) for reader in readers}
    conn = http.client.HTTPConnection(writer, timeout=20)
    for at in range(count):
        conn.request("PUT", f"/ann/lag-{run}/{at}", body=b"x" * 4096)
        answer = conn.getresponse()
        body = answer.read()
        assert answer.status in (200, 201), body
        begun = time.monotonic()
        id = re.search(rb'"object":"([0-9a-f]+)"', body)[1].decode()
        for reader in readers:
            while True:
                conns[reader].request("GET", f"/-/v1/objects/{id}")
                answer = conns[reader].getresponse()
                answer.read()
                if answer.status == 200:
                    break
            took.append((time.monotonic() - begun) * 1000)
        time.sleep(0.01)
    return sorted(took)


def gluster_lag(folder, others, count):
    """The same for a file that is appended to: until the other mounts show the new length."""
    took = []
    for at in range(count):
        with open(folder / "lag", "ab") as out:
            out.write(b"x" * 4096)
            out.flush()
            begun = time.monotonic()
            size = (at + 1) * 4096
            for other in others:
                while True:
                    try:
                        if (other / "lag").stat().st_size >= size:
                            break
                    except OSError:
                        pass
                took.append((time.monotonic() - begun) * 1000)
    return sorted(took)


def say_lag(what, took):
    say(f"{what}: median {took[len(took) // 2]:.2f} ms, p99 {took[int(len(took) * 0.99)]:.2f} ms, worst {took[-1]:.2f} ms ({len(took)} of them)")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=1, help="large files written at a time")
    parser.add_argument("--memory", action="store_true", help="each host's disk is one of its own, in memory: else one disk takes all copies of both")
    parser.add_argument("--written", action="store_true", help="the hosts' disks lie in space that was written to before")
    parser.add_argument("--congestion", help="TCP congestion control of all hosts (reno); this machine's when left out")
    args = parser.parse_args()
    hosts.enter("the comparison with GlusterFS")
    if shutil.which("wrk") is None:
        sys.exit("needs wrk (apt-get install wrk)")
    folder = pathlib.Path.cwd() / "target"
    if args.memory:
        folder = folder / "memory"
        folder.mkdir(parents=True, exist_ok=True)
        # In this process's own namespace: it is gone with it.
        hosts.run("mount", "-t", "tmpfs", "-o", f"size={MEMORY}", "tmpfs", folder)
    with Lab(folder, args.congestion) as lab:
        cluster = Cluster(lab, trackers=1, ids=1, groups=1, nodes=3, https=0, ack="all", virtual=False, disk_mib=5_000 if args.memory else 12_000, prewrite="512 MiB", segment="256 MiB", written=args.written)
        nodes = cluster.of("storage")
        volume = Volume([member.host for member in nodes])
        one = nodes[0].address
        folders = [volume.mount[member.host.name] for member in nodes]
        lua = lab.dir / "puts.lua"
        lua.write_text(PUTS)
        on_one = lambda *what: float(nodes[0].host.run(sys.executable, HERE / "write.py", *what).stdout)
        found = {"large": ([], []), "small": ([], [])}
        for round_ in range(args.rounds):
            ours = on_one("put", one, f"/ann/large-{round_}", args.streams, FILES // args.streams, MIB)
            theirs = on_one("large", folders[0], args.streams, FILES // args.streams, MIB)
            found["large"][0].append(ours)
            found["large"][1].append(theirs)
            our_files = small_puts(one, lua, round_, args.seconds)
            their_files = on_one("small", folders[0], 16, args.seconds)
            found["small"][0].append(our_files)
            found["small"][1].append(their_files)
            say(f"  round {round_ + 1}: large {ours:.0f} against {theirs:.0f} MB/s; 4 KiB {our_files:.0f} against {their_files:.0f} files/s")
        for what, unit in (("large", "MB/s"), ("small", "files/s")):
            ours, theirs = found[what]
            say(f"{what}: own replication, ack = all {spread(ours)} {unit}, GlusterFS {spread(theirs)}; {spread([a / b for a, b in zip(ours, theirs)])} times")
        # Lag, with answers that do not wait for the others.
        for member in nodes:
            member.die()
            config = member.host.dir / "reel.toml"
            config.write_text(config.read_text().replace('ack = "all"', "ack = 1"))
            member.start()
        for member in nodes:
            hosts.until(f"{member.host.name} is well", member.is_well, 60)
        time.sleep(3)
        others = [member.address for member in nodes[1:]]
        say_lag("own replication, idle, from the answer until another node holds it", lag(one, others, "idle", 200))
        load = threading.Thread(target=small_puts, args=(one, lua, "load", 8))
        load.start()
        time.sleep(1)
        say_lag("own replication, at full upload rate", lag(one, others, "load", 100))
        load.join()
        gluster = [pathlib.Path(f"/proc/{member.host.first.pid}/root{volume.mount[member.host.name]}") for member in nodes]
        say_lag("GlusterFS, idle, until another mount shows the new length", gluster_lag(gluster[0], gluster[1:], 50))


if __name__ == "__main__":
    main()
