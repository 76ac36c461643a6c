#!/usr/bin/env python3
"""A file in split-brain on a group's GlusterFS volume (made on purpose, with the quorum off): its node says so in its health and goes
on with all others; decided, the file is read again."""

import http.client
import pathlib
import re
import sys
import time

import hosts
from cluster import Cluster, get_json
from gluster import VOLUME
from hosts import Lab, say, until


def ask(address, method, path, body=None):
    conn = http.client.HTTPConnection(address, timeout=20)
    conn.request(method, path, body=body)
    answer = conn.getresponse()
    data = answer.read()
    conn.close()
    return answer.status, data


def main():
    hosts.enter("the split-brain")
    with Lab(pathlib.Path.cwd() / "target") as lab:
        # Nothing small stays in memory: every read goes to the volume.
        cluster = Cluster(lab, trackers=1, ids=1, groups=1, https=0, virtual=False, shared=True, storage='body_cache = "0 B"')
        nodes, volume = cluster.of("storage"), cluster.volumes[1]
        first, second = volume.hosts[0], volume.hosts[1]

        def gluster(*words):
            first.run("gluster", "--mode=script", "volume", *words)

        film = bytes(range(256)) * 8192
        status, answer = ask(nodes[0].address, "PUT", "/ann/film", film)
        assert status == 201, (status, answer)
        assert ask(nodes[0].address, "PUT", "/ann/other", film)[0] == 201
        path = re.search(rb'"path":"([^"]+)"', answer)[1].decode()
        for option in ("cluster.quorum-type none", "cluster.self-heal-daemon off"):
            gluster("set", VOLUME, *option.split())
        # Nobody has it open: the next read asks the volume.
        for member in nodes:
            member.die()

        def write_on(host, without):
            """The same byte over itself: the copies stay right, and yet each brick accuses the others."""
            for other in without:
                volume.kill_brick(other)
            time.sleep(1)
            file = volume.mount[host.name] / "node-101" / path
            host.run(sys.executable, "-c", f"import os; f = os.open('{file}', os.O_RDWR); os.pwrite(f, os.pread(f, 1, 5000), 5000); os.fsync(f)")
            volume.start_brick(first)
            until("all bricks are up", lambda: first.run("gluster", "volume", "status", VOLUME).stdout.count(" Y ") >= len(volume.hosts))
            time.sleep(2)

        write_on(first, volume.hosts[1:])
        write_on(second, [first])
        for member in nodes:
            member.start()
        for member in nodes:
            until(f"{member.host.name} is well", member.is_well, 60)
        status, answer = ask(nodes[0].address, "GET", "/ann/film")
        assert status == 503, (status, answer[:200])
        health = get_json(nodes[0].address, "/-/health")
        split = health["split_brain_files"]
        say(f"GET of the file: {status}; health: {health['status']}, split_brain_files: {split}")
        assert len(split) == 1 and split[0].endswith(path), split
        assert ask(nodes[0].address, "GET", "/ann/other") == (200, film), "the others are read"
        brick = f"{first.address}:{volume.brick(first)}"
        gluster("heal", VOLUME, "split-brain", "source-brick", brick, f"/node-101/{path}")
        until("the file is read again", lambda: ask(nodes[0].address, "GET", "/ann/film") == (200, film))
        until("health is without it", lambda: not get_json(nodes[0].address, "/-/health")["split_brain_files"])
        say("kept: it was named, the others were read, and it was read again when it had been decided")


if __name__ == "__main__":
    main()
