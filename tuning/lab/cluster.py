"""A cluster of Reelstore in the lab: each process on a host of its own."""

import http.client
import json
import os
import pathlib
import pwd
import shutil
import subprocess
import threading
import time
import urllib.request

from gluster import Volume
from hosts import NETWORK, run, say, until

ROOT = pathlib.Path(__file__).resolve().parents[2]
REEL = os.environ.get("REEL", str(ROOT / "target/release/reel"))
BEAT = "300 ms"
HTTP_PORT, TRACKER_PORT, ID_PORT, STORAGE_PORT, PG_PORT = 80, 7401, 7402, 7501, 5432
HTTP_ADDRESS, TRACKER_ADDRESS = f"{NETWORK}.100", f"{NETWORK}.101"


def get_json(address, path, timeout=2):
    with urllib.request.urlopen(f"http://{address}{path}", timeout=timeout) as answer:
        return json.load(answer)


def is_well(address):
    try:
        with urllib.request.urlopen(f"http://{address}/-/health", timeout=1):
            return True
    except OSError:
        return False


def upload_all(address, files, threads=8):
    """Uploads (path, function that gives the bytes) pairs, each until it is taken: a node that has just started does not know its peers yet, and
    answers 503."""
    files = list(files)

    def upload(mine):
        conn = http.client.HTTPConnection(address, timeout=60)
        for path, body in mine:

            def is_taken():
                conn.request("PUT", path, body=body())
                answer = conn.getresponse()
                answer.read()
                return answer.status in (200, 201)

            until(f"{path} is taken", is_taken)

    workers = [threading.Thread(target=upload, args=(files[first::threads],)) for first in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


class Member:
    """A process of the cluster, on its host. A keeper starts it again when it has died, as systemd would."""

    def __init__(self, host, args, address, kind, group=0):
        self.host, self.args, self.address, self.kind, self.group = host, args, address, kind, group
        self.child = None
        self.wanted = False
        # Held while somebody ends or starts it.
        self.lock = threading.RLock()

    def start(self):
        with self.lock:
            self.wanted = True
            self.child = self.host.start(self.args, f"{self.kind}.log")

    def die(self):
        """kill -9; it stays dead until `start`."""
        with self.lock:
            self.wanted = False
            self.child.kill()
            self.child.wait()

    def stop(self):
        """SIGTERM, as an operator would; it stays away until `start`."""
        with self.lock:
            self.wanted = False
            self.child.terminate()
            self.child.wait()

    def hand_over(self, build):
        """Another build takes over the listening sockets; then SIGTERM for the one that had them."""
        log = self.host.dir / f"{self.kind}.log"
        times_ready = lambda: log.read_text(errors="replace").count(" ready ")
        with self.lock:
            old, before = self.child, times_ready()
            self.args = [build, *self.args[1:]]
            self.child = self.host.start([*self.args, "--take-over"], log.name)
            until(f"the new {self.host.name} is ready", lambda: times_ready() > before, 20)
            old.terminate()
            old.wait()

    def is_dead(self):
        return self.child.poll() is not None

    def is_well(self):
        return is_well(self.address)


class Cluster:
    """Trackers, ID servers, groups of storage nodes, PostgreSQL, HTTP servers (behind Keepalived when it is there)."""

    def __init__(self, lab, trackers=3, ids=2, groups=2, nodes=3, https=2, ack="2", disk_mib=1024, virtual=True, storage="", prewrite="32 MiB", segment="16 MiB", shared=False, written=False):
        self.lab, self.members = lab, {}
        self.virtual = virtual
        # The volume of each group whose copies GlusterFS keeps.
        self.shared, self.volumes = shared, {}
        self.addresses = {
            "trackers": [f"{NETWORK}.{11 + at}" for at in range(trackers)],
            "ids": [f"{NETWORK}.{21 + at}" for at in range(ids)],
            "http": [f"{NETWORK}.{81 + at}" for at in range(https)],
        }
        self.catalog = f"postgres://reel@{NETWORK}.31:{PG_PORT}/reel"
        self.ack, self.more, self.disk_mib, self.written = ack, storage, disk_mib, written
        self.prewrite, self.segment = prewrite, segment
        self.start_postgres()
        for at, address in enumerate(self.addresses["trackers"]):
            self.role("tracker", f"tracker-{at + 1}", 11 + at, TRACKER_PORT, f'[tracker]\nlisten = "0.0.0.0:{TRACKER_PORT}"')
        for at, address in enumerate(self.addresses["ids"]):
            self.role("id", f"id-{at + 1}", 21 + at, ID_PORT, f'[id]\nlisten = "{address}:{ID_PORT}"')
        for member in list(self.members.values()):
            until(f"{member.host.name} is well", member.is_well)
        for group in range(1, groups + 1):
            if shared:
                hosts = [self.host_of(group, node) for node in range(1, nodes + 1)]
                self.volumes[group] = Volume(hosts, tuned=True)
            for node in range(1, nodes + 1):
                self.add_node(group, node)
        for at, address in enumerate(self.addresses["http"]):
            self.role("http", f"http-{at + 1}", 81 + at, HTTP_PORT, f'[http]\nshards = 1\nlisten = "0.0.0.0:{HTTP_PORT}"')
        for member in self.members.values():
            until(f"{member.host.name} is well", member.is_well, 60)
        self.stopping = False
        lab.before_end.append(self.stop)
        self.keeper = threading.Thread(target=self.keep, daemon=True)
        self.keeper.start()
        if virtual:
            self.start_keepalived("http", HTTP_ADDRESS, HTTP_PORT)
            self.start_keepalived("tracker", TRACKER_ADDRESS, TRACKER_PORT)

    def stop(self):
        self.stopping = True
        self.keeper.join()

    def top(self):
        trackers = ", ".join(f'"{address}:{TRACKER_PORT}"' for address in self.addresses["trackers"])
        ids = ", ".join(f'"{address}:{ID_PORT}"' for address in self.addresses["ids"])
        return f'cluster = "lab"\nbeat = "{BEAT}"\ncatalog = "{self.catalog}"\ntrackers = [{trackers}]\nid_servers = [{ids}]\n'

    def role(self, role, name, number, port, section, group=0):
        host = self.lab.hosts.get(name) or self.lab.host(name, number)
        config = host.dir / "reel.toml"
        config.write_text(self.top() + section + "\n")
        member = Member(host, [REEL, role, "--config", config], f"{host.address}:{port}", role, group)
        member.start()
        self.members[name] = member
        return member

    def host_of(self, group, node):
        name = f"node-{group}-{node}"
        return self.lab.hosts.get(name) or self.lab.host(name, 40 + group * 10 + node)

    def add_node(self, group, node):
        host = self.host_of(group, node)
        if self.shared:
            data, how = self.volumes[group].mount[host.name], 'replication = "shared"'
        else:
            data = host.disk(self.disk_mib, self.written) / "data"
            how = f"ack = {self.ack if self.ack.isdigit() else json.dumps(self.ack)}"
        section = f"""[storage]
id = {group * 100 + node}
group = {group}
shards = 1
listen = "{host.address}:{STORAGE_PORT}"
data = "{data}"
{how}
reserve = "32 MiB"
prewrite = "{self.prewrite}"
segment_bytes = "{self.segment}"
{self.more}
"""
        return self.role("storage", host.name, 40 + group * 10 + node, STORAGE_PORT, section, group)

    def of(self, kind, group=None):
        return [member for member in self.members.values() if member.kind == kind and group in (None, member.group)]

    def start_postgres(self):
        found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not found:
            raise SystemExit("the lab needs PostgreSQL (apt-get install postgresql)")
        self.pg_bin = found[-1].parent
        self.pg_host = self.lab.host("postgres", 31)
        self.pg_data = self.pg_host.dir / "pg"
        user = pwd.getpwnam("postgres")
        self.pg_data.mkdir()
        os.chown(self.pg_data, user.pw_uid, user.pw_gid)
        self.pg_as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        run(*self.pg_as, self.pg_bin / "initdb", "-D", self.pg_data, "-U", "reel", "--auth=trust", "--no-sync", cwd="/")
        with open(self.pg_data / "pg_hba.conf", "a") as out:
            out.write(f"host all all {NETWORK}.0/24 trust\n")
        self.run_postgres()
        self.pg_host.run(self.pg_bin / "createdb", "-h", "127.0.0.1", "-U", "reel", "reel")

    def run_postgres(self):
        self.pg = self.pg_host.start(
            [*self.pg_as, self.pg_bin / "postgres", "-D", self.pg_data, "-h", "*", "-k", "/tmp", "-c", "max_connections=200"], "postgres.log", cwd="/"
        )
        ready = [self.pg_bin / "pg_isready", "-q", "-h", "127.0.0.1", "-U", "reel"]
        until("PostgreSQL is ready", lambda: self.pg_host.run(*ready, check=False).returncode == 0, 60)

    def restart_postgres(self):
        self.pg_host.kill()
        self.pg.wait()
        (self.pg_data / "postmaster.pid").unlink(missing_ok=True)
        self.run_postgres()

    def start_keepalived(self, kind, address, port):
        """The product's own configuration for Keepalived, on each of the role's hosts."""
        if shutil.which("keepalived") is None:
            raise SystemExit("the lab needs keepalived (apt-get install keepalived)")
        members = self.of(kind)
        for at, member in enumerate(members):
            config = member.host.dir / "keepalived.conf"
            peers = [f"--peer={other.host.address}" for other in members if other is not member]
            options = ["--role", kind, "--address", f"{address}/24", "--interface", "eth0", "--port", str(port)]
            text = run(REEL, "config", "keepalived", *options, "--own", member.host.address, *peers, "--priority", 150 - at * 10).stdout
            config.write_text(text)
            member.host.start([REEL, "health", member.address, "--track", f"/run/reel-{kind}.health"], "health.log")
            pid = member.host.dir / "keepalived.pid"
            member.keepalived = member.host.start(["keepalived", "-n", "-l", "-f", config, "-p", pid, "-r", f"{pid}.vrrp"], "keepalived.log")
        until(f"somebody has {address}", lambda: is_well(f"{address}:{port}"), 30)

    def keep(self):
        """Starts again what died by itself."""
        while not self.stopping:
            for member in self.members.values():
                with member.lock:
                    if member.wanted and member.is_dead():
                        say(f"    {member.host.name} ended with {member.child.returncode}; started again")
                        member.start()
            time.sleep(0.2)

    def nodes(self):
        """What the first tracker that answers says of the nodes, by name of host."""
        for address in self.addresses["trackers"]:
            try:
                views = get_json(f"{address}:{TRACKER_PORT}", "/-/v1/nodes?detail=1")["nodes"]
                return {f"node-{view['id'] // 100}-{view['id'] % 100}": view for view in views}
            except OSError:
                continue
        return {}

    def is_whole(self, group):
        """Whether every node of a group that is to run is active and lacks nothing."""
        views = self.nodes()
        names = [member.host.name for member in self.of("storage", group) if member.wanted]
        if group in self.volumes and not self.volumes[group].is_healed():
            return False
        return all(name in views and views[name]["state"] == "active" and views[name]["lag"] == 0 for name in names)
