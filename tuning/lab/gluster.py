"""A GlusterFS volume, replica 3, on hosts of the lab: each has its own glusterd, brick and mount."""

import shutil

from hosts import run, say, until

VOLUME = "reel"


class Volume:
    """Stock options, as `volume create` leaves them."""

    def __init__(self, hosts, mount="mnt"):
        if shutil.which("glusterd") is None:
            raise SystemExit("needs glusterd (apt-get install glusterfs-server)")
        self.hosts = hosts
        for host in hosts:
            for own, system in (("glusterd", "/var/lib/glusterd"), ("glusterlog", "/var/log/glusterfs")):
                (host.dir / own).mkdir()
                host.run("mkdir", "-p", system)
                host.run("mount", "--bind", host.dir / own, system)
            (host.dir / "brick").mkdir()
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
        bricks = [f"{host.address}:{host.dir}/brick" for host in hosts]
        until("the volume", lambda: first.run("gluster", "--mode=script", "volume", "create", VOLUME, "replica", len(hosts), *bricks, "force", check=False).returncode == 0)
        first.run("gluster", "volume", "start", VOLUME)
        self.mount = {}
        for host in hosts:
            folder = host.dir / mount
            folder.mkdir()
            until(f"the mount on {host.name}", lambda: host.run("mount", "-t", "glusterfs", f"{host.address}:/{VOLUME}", folder, check=False).returncode == 0)
            self.mount[host.name] = folder
        until("all bricks are up", lambda: first.run("gluster", "volume", "status", VOLUME).stdout.count(" Y ") >= len(hosts), 60)
