"""A GlusterFS volume, replica 3, on hosts of the lab: each has its own glusterd, brick and mount."""

import os
import pathlib
import shutil
import signal

from hosts import run, say, until

VOLUME = "reel"
MAKE = pathlib.Path(__file__).resolve().parents[1] / "glusterfs" / "make-volume.sh"


class Volume:
    """With stock options, as `volume create` leaves them, or (`tuned`) with those of tuning/glusterfs."""

    def __init__(self, hosts, mount="mnt", tuned=False):
        if shutil.which("glusterd") is None:
            raise SystemExit("needs glusterd (apt-get install glusterfs-server)")
        self.hosts = hosts
        for host in hosts:
            for own, system in (("glusterd", "/var/lib/glusterd"), ("glusterlog", "/var/log/glusterfs")):
                (host.dir / own).mkdir()
                host.run("mkdir", "-p", system)
                host.run("mount", "--bind", host.dir / own, system)
            host.run("mkdir", self.brick(host))
            host.run("mkdir", "-p", "/run/gluster")
            # It goes on in the background, in the host's namespaces.
            host.run("glusterd", "-p", "/run/glusterd.pid", "--log-level", "WARNING")
        first = hosts[0]
        for host in hosts:
            until(f"glusterd on {host.name}", lambda: host.run("gluster", "pool", "list", check=False).returncode == 0)
        for host in hosts[1:]:
            until(f"peer {host.name}", lambda: first.run("gluster", "peer", "probe", host.address, check=False).returncode == 0)
        connected = lambda: first.run("gluster", "pool", "list").stdout.count("Connected") == len(hosts)
        until("the pool", connected)
        bricks = [f"{host.address}:{self.brick(host)}" for host in hosts]
        if tuned:
            # glusterd may not be ready for a volume right after it knows its peers.
            until("glusterd takes a volume", lambda: first.run("env", "FORCE=force", MAKE, VOLUME, *bricks, check=False).returncode == 0 or self.is_there(first))
        else:
            until("the volume", lambda: first.run("gluster", "--mode=script", "volume", "create", VOLUME, "replica", len(hosts), *bricks, "force", check=False).returncode == 0)
            first.run("gluster", "volume", "start", VOLUME)
        self.mount = {}
        for host in hosts:
            folder = host.dir / mount
            folder.mkdir()
            until(f"the mount on {host.name}", lambda: host.run("mount", "-t", "glusterfs", f"{host.address}:/{VOLUME}", folder, check=False).returncode == 0)
            self.mount[host.name] = folder
        until("all bricks are up", lambda: first.run("gluster", "volume", "status", VOLUME).stdout.count(" Y ") >= len(hosts), 60)

    def brick(self, host):
        """On the host's own disk, when it has one."""
        disk = host.dir / "disk"
        return (disk if disk.exists() else host.dir) / "brick"

    def is_there(self, host):
        return "Status: Started" in host.run("gluster", "volume", "info", VOLUME, check=False).stdout

    def of(self, host, program):
        """Pids of a program there: glusterfsd serves the brick, glusterfs with the mount's path is the client."""
        found = []
        for pid in host.pids():
            try:
                line = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            name = os.path.basename(line[0].decode())
            is_client = name == "glusterfs" and str(self.mount[host.name]).encode() in line
            if program == "brick" and name == "glusterfsd" or program == "mount" and is_client:
                found.append(pid)
        return found

    def kill_brick(self, host):
        for pid in self.of(host, "brick"):
            os.kill(pid, signal.SIGKILL)

    def start_brick(self, host):
        host.run("gluster", "--mode=script", "volume", "start", VOLUME, "force")

    def signal_mount(self, host, number):
        for pid in self.of(host, "mount"):
            os.kill(pid, number)

    def is_healed(self):
        """Whether every brick is up, and has all that the others have."""
        host = self.hosts[0]
        status = host.run("gluster", "volume", "status", VOLUME, check=False).stdout
        if status.count(" Y ") < 2 * len(self.hosts):
            return False
        info = host.run("gluster", "volume", "heal", VOLUME, "info", "summary", check=False).stdout
        totals = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("Total Number of entries")]
        return len(totals) == len(self.hosts) and all(total == "0" for total in totals)
