#!/usr/bin/env python3
"""The end-to-end suite with its storage nodes on a real GlusterFS volume (replica 3, three hosts of the lab, a mount of each):
replication = "shared". Tests about copies that nodes keep themselves say so and are skipped.

Further arguments go to the tests, as after `cargo test --test e2e --`."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tuning" / "lab"))
import hosts  # noqa: E402
from gluster import Volume  # noqa: E402
from hosts import Lab, say  # noqa: E402


def main():
    hosts.enter("the end-to-end suite on GlusterFS")
    # Bricks need extended attributes, which a tmpfs has not.
    with Lab(ROOT / "target") as lab:
        volume = Volume([lab.host(f"gluster-{at}", 60 + at) for at in range(1, 4)], tuned=True)
        # Each host's mount is in that host's own mount namespace; the tests see it by its first process.
        mounts = [f"/proc/{host.first.pid}/root{volume.mount[host.name]}" for host in volume.hosts]
        say(f"the volume is mounted at {', '.join(mounts)}")
        command = ["cargo", "test", "--locked", "--test", "e2e", "--", *sys.argv[1:]]
        tests = subprocess.run(command, cwd=ROOT, env={**os.environ, "REEL_TEST_SHARED": ":".join(mounts)}, check=False)
    sys.exit(tests.returncode)


if __name__ == "__main__":
    main()
