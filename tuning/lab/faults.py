#!/usr/bin/env python3
"""The fault run: a cluster in the lab under steady load, a random fault about every ten seconds, and a checker that
knows what was promised. Ends with 1 when something was lost, wrong or back, or when viewers were kept waiting."""

import argparse
import http.client
import json
import pathlib
import random
import signal
import socket
import statistics
import sys
import threading
import time

import hosts
from checker import ABSENT, Name, body_of
from cluster import HTTP_ADDRESS, HTTP_PORT, Cluster, get_json, is_well
from hosts import Lab, say, until

# A reader that hears nothing for so long asks again on a new connection: nothing else helps when the HTTP server it is
# connected to is frozen, or its cable is out.
SILENCE = 0.7
# It gives up after so long; it counts as failed after 1 s.
PATIENCE = 10.0
TIMEOUT = 5.0
SMALL, LARGE = 60_000, 3_000_000
# Of storage nodes. A disk of a shared volume that is wiped or full is the volume's to survive.
FAULTS = ["kill", "freeze", "cut", "wipe", "fill"]
SHARED_FAULTS = ["kill", "freeze", "cut", "brick", "hang"]


class Client:
    """One connection to the virtual address, made anew when it breaks."""

    def __init__(self, addresses):
        self.addresses = addresses
        self.conn = None
        # Of the last answer.
        self.etag = None

    def once(self, method, path, body=None, headers=(), timeout=TIMEOUT, receive=None):
        if self.conn is None or self.conn.sock is None:
            host, port = random.choice(self.addresses).split(":")
            self.conn = http.client.HTTPConnection(host, int(port), timeout=SILENCE)
            self.conn.connect()
            if receive:
                self.conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        self.conn.sock.settimeout(timeout)
        try:
            self.conn.request(method, path, body=body, headers=dict(headers))
            answer = self.conn.getresponse()
            data = answer.read()
            self.etag = answer.getheader("ETag")
            if answer.will_close:
                self.close()
            return answer.status, data
        except (OSError, http.client.HTTPException):
            self.close()
            raise

    def close(self):
        if self.conn is not None:
            self.conn.close()
            self.conn = None


class Run:
    def __init__(self, cluster, addresses, seed, writers, names):
        self.cluster, self.addresses = cluster, addresses
        self.random = random.Random(seed)
        self.stop = threading.Event()
        self.names = [[Name(f"/user-{writer % 6}/w{writer}/{at}") for at in range(names)] for writer in range(writers)]
        self.lock = threading.Lock()
        self.counts = {key: 0 for key in ("puts", "puts unanswered", "deletes", "deletes unanswered", "gets", "gets tried again", "gets failed", "gets stale")}
        self.wrong, self.failures, self.latencies, self.gaps = [], [], [], []
        self.faults = []
        self.began = time.monotonic()

    def note(self, key):
        with self.lock:
            self.counts[key] += 1

    def bad(self, what):
        with self.lock:
            self.wrong.append(what)
        say(f"    WRONG at {time.monotonic() - self.began:.1f} s: {what}")

    def read(self, client, name):
        """A read, tried again while nothing answers it."""
        start = time.monotonic()
        tries = 0
        while True:
            begun = time.monotonic()
            try:
                status, body = client.once("GET", name.path, timeout=SILENCE)
                problem = None if status in (200, 404) else f"{status} {body[:200]!r}"
            except (OSError, http.client.HTTPException) as error:
                status, body, problem = 0, b"", repr(error)
            end = time.monotonic()
            if problem is None:
                break
            tries += 1
            if end - start > PATIENCE or self.stop.is_set():
                break
            time.sleep(0.02)
        with self.lock:
            self.counts["gets"] += 1
            self.counts["gets tried again"] += tries > 0
            self.latencies.append((start - self.began, end - start))
            if problem is not None or end - start > 1.0:
                self.counts["gets failed"] += 1
                self.failures.append((start - self.began, end - start, name.path, problem))
        if problem is None:
            wrong = name.judge(begun, end, status, body)
            if wrong == "stale":
                self.note("gets stale")
            elif wrong:
                self.bad(wrong)

    def writer(self, mine, seed):
        client, rng = Client(self.addresses), random.Random(seed)
        while not self.stop.is_set():
            name = rng.choice(mine)
            delete = rng.random() < 0.2
            size = ABSENT if delete else (LARGE if rng.random() < 0.01 else rng.randrange(40, SMALL))
            write = name.begin(size)
            kind = "deletes" if delete else "puts"
            try:
                if delete:
                    status, body = client.once("DELETE", name.path, timeout=15)
                else:
                    status, body = client.once("PUT", name.path, body_of(name.path, write.version, size), timeout=15)
                done = status in (200, 201, 204) or delete and status == 404
                if not done and status < 500:
                    self.bad(f"{kind} of {name.path}: {status} {body[:200]!r}")
            except (OSError, http.client.HTTPException):
                done = False
            if done:
                name.end(write)
            self.note(kind if done else f"{kind} unanswered")
            time.sleep(rng.random() * 0.06)

    def reader(self, seed):
        client, rng = Client(self.addresses), random.Random(seed)
        while not self.stop.is_set():
            self.read(client, rng.choice(rng.choice(self.names)))
            time.sleep(rng.random() * 0.02)

    def viewer(self, path, size, rate=500_000, piece=32_768):
        """Watches a film at its pace, over and over: the longest time it waits for the next piece. Its receive buffer is
        small, so that the kernel's buffers hide little."""
        at = 0
        expected = body_of(path, 1, size)
        while not self.stop.is_set():
            waited_from = time.monotonic()
            try:
                host, port = random.choice(self.addresses).split(":")
                with socket.socket() as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
                    sock.settimeout(SILENCE)
                    sock.connect((host, int(port)))
                    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: lab\r\nRange: bytes={at}-\r\n\r\n".encode())
                    stream = sock.makefile("rb", buffering=piece)
                    status = int(stream.readline().split()[1])
                    while stream.readline() not in (b"\r\n", b""):
                        pass
                    if status != 206:
                        raise OSError(f"status {status}")
                    while at < size and not self.stop.is_set():
                        got = stream.read1(min(piece, size - at))
                        now = time.monotonic()
                        if not got:
                            raise OSError("broke off")
                        if got != expected[at : at + len(got)]:
                            self.bad(f"the film {path} has wrong bytes at {at}")
                        with self.lock:
                            self.gaps.append((now - self.began, now - waited_from))
                        at += len(got)
                        time.sleep(len(got) / rate)
                        waited_from = time.monotonic()
                    at = 0 if at >= size else at
            except (OSError, IndexError, ValueError):
                # The wait goes on over the new connection.
                gap_from = waited_from
                with self.lock:
                    self.gaps.append((time.monotonic() - self.began, time.monotonic() - gap_from))
                time.sleep(0.02)

    # Faults. Each heals what it broke, and returns when the group (or role) is whole again.

    def fault_kill(self, member):
        member.die()
        time.sleep(self.random.uniform(0.5, 4))
        member.start()

    def fault_freeze(self, member):
        member.host.freeze()
        time.sleep(self.random.uniform(1, 6))
        member.host.thaw()

    def fault_cut(self, member):
        member.host.cut()
        time.sleep(self.random.uniform(1, 6))
        member.host.heal()

    def fault_wipe(self, member):
        member.die()
        hosts.run("rm", "-rf", member.host.dir / "disk" / "data", check=False)
        member.host.run("sh", "-c", f"rm -rf {member.host.dir}/disk/data")
        member.start()

    def fault_fill(self, member):
        full = member.host.dir / "disk" / "full"
        member.host.run("sh", "-c", f"head -c 10G /dev/zero > {full}", check=False)
        time.sleep(self.random.uniform(3, 6))
        member.host.run("rm", "-f", full)

    def fault_brick(self, member):
        """The volume's server there dies, and is started again."""
        volume = self.cluster.volumes[member.group]
        volume.kill_brick(member.host)
        time.sleep(self.random.uniform(1, 6))
        volume.start_brick(member.host)

    def fault_hang(self, member):
        """The mount there answers no call."""
        volume = self.cluster.volumes[member.group]
        volume.signal_mount(member.host, signal.SIGSTOP)
        time.sleep(self.random.uniform(1, 8))
        volume.signal_mount(member.host, signal.SIGCONT)

    def fault_postgres(self, _member):
        self.cluster.restart_postgres()

    def inject(self, kind, member):
        what = f"{kind} {member.host.name if member else ''}".strip()
        begun = time.monotonic()
        try:
            getattr(self, f"fault_{kind}")(member)
            healed = time.monotonic()
            if member is not None:
                until(f"{member.host.name} is well after {kind}", member.is_well, 60)
                if member.group:
                    time.sleep(1.5)
                    until(f"group {member.group} is whole after {what}", lambda: self.cluster.is_whole(member.group), 120)
        except Exception as error:  # A run that does not heal is a finding, not an end.
            self.bad(f"{what}: {error!r}")
            healed = time.monotonic()
        self.faults.append((begun - self.began, what, healed - begun, time.monotonic() - begun))
        say(f"  {begun - self.began:7.1f} s  {what}, for {healed - begun:.1f} s; whole after {time.monotonic() - begun:.1f} s")

    def one_fault(self, every):
        """A fault of a part that has none now; parts are the groups, and each other role."""
        parts = {**{f"group {group}": group for group in {member.group for member in self.cluster.of("storage")}}, "trackers": 0, "ids": 0, "http": 0, "postgres": 0}
        busy = {}
        while not self.stop.wait(self.random.uniform(every * 0.6, every * 1.4)):
            free = [part for part in parts if part not in busy or not busy[part].is_alive()]
            if not free:
                continue
            # Half of the faults are the nodes'.
            nodes = [part for part in free if part.startswith("group")]
            part = self.random.choice(nodes if nodes and self.random.random() < 0.5 else free)
            if part.startswith("group"):
                member = self.random.choice([member for member in self.cluster.of("storage", parts[part]) if member.wanted])
                kind = self.random.choice(SHARED_FAULTS if self.cluster.shared else FAULTS)
            elif part == "postgres":
                member, kind = None, "postgres"
            else:
                member = self.random.choice(self.cluster.of({"trackers": "tracker", "ids": "id", "http": "http"}[part]))
                kind = self.random.choice(["kill", "freeze", "cut"])
            busy[part] = threading.Thread(target=self.inject, args=(kind, member))
            busy[part].start()
        for thread in busy.values():
            thread.join()

    def at_rest(self):
        """Everything healed: every name at every node of its group is what the last answered write made it, or a later
        unanswered one."""
        for member in self.cluster.of("storage"):
            if not member.wanted:
                member.start()
        for group in {member.group for member in self.cluster.of("storage")}:
            until(f"group {group} is whole at the end", lambda: self.cluster.is_whole(group), 120)
        time.sleep(3)
        client = {member.host.name: Client([member.address]) for member in self.cluster.of("storage")}
        checked = 0
        for name in (name for mine in self.names for name in mine):
            answers = {}
            for member in self.cluster.of("storage"):
                start = time.monotonic()
                try:
                    status, body = client[member.host.name].once("GET", name.path)
                except (OSError, http.client.HTTPException) as error:
                    self.bad(f"at rest {member.host.name} does not answer {name.path}: {error!r}")
                    continue
                if status == 421:
                    continue
                if status not in (200, 404):
                    self.bad(f"at rest {member.host.name} answers {status} for {name.path}: {body[:200]!r}")
                    continue
                wrong = name.judge(start, time.monotonic(), status, body, stale=0)
                if wrong:
                    self.bad(f"at rest, {member.host.name}: {wrong}")
                answers[member.host.name] = (status, body)
                checked += 1
                if status == 200 and not self.cluster.shared:
                    # Not only by asking its peers: each node holds it itself.
                    object = client[member.host.name].etag.strip('"').split("-")[0]
                    status, _ = client[member.host.name].once("GET", f"/-/v1/objects/{object}")
                    if status != 200:
                        self.bad(f"at rest {member.host.name} does not hold {name.path} (object {object}) itself: {status}")
            if len(set(answers.values())) > 1:
                self.bad(f"at rest the nodes differ about {name.path}: { {host: (status, len(body)) for host, (status, body) in answers.items()} }")
        return checked


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--every", type=float, default=10, help="seconds from one fault to the next, about")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--writers", type=int, default=6)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--names", type=int, default=100, help="names of each writer")
    parser.add_argument("--no-virtual", action="store_true", help="without Keepalived: clients know all HTTP servers")
    parser.add_argument("--dead", action="store_true", help="one node of each group is dead all the time")
    parser.add_argument("--shared", action="store_true", help='one group of 3 nodes on a GlusterFS volume, replica 3 (replication = "shared")')
    parser.add_argument("--times", choices=["judge", "say"], default="judge", help="say: only what was promised about bytes is judged (for machines that do other work too)")
    parser.add_argument("--logs", help="a folder that the processes' logs are copied to at the end")
    args = parser.parse_args()
    hosts.enter("the fault run")
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 32)
    say(f"seed {seed}")
    # GlusterFS needs extended attributes of its bricks, which a tmpfs has not.
    with Lab(pathlib.Path.cwd() / "target" if args.shared else None) as lab:
        begun = time.monotonic()
        cluster = Cluster(lab, virtual=not args.no_virtual, shared=args.shared, groups=1 if args.shared else 2)
        say(f"the cluster is up after {time.monotonic() - begun:.1f} s: {', '.join(cluster.members)}")
        addresses = [member.address for member in cluster.of("http")] if args.no_virtual else [f"{HTTP_ADDRESS}:{HTTP_PORT}"]
        run = Run(cluster, addresses, seed, args.writers, args.names)
        film, film_bytes = "/user-0/film", 16 << 20
        client = Client(addresses)
        status, body = client.once("PUT", film, body_of(film, 1, film_bytes), timeout=60)
        assert status == 201, (status, body)
        threads = [threading.Thread(target=run.writer, args=(mine, f"{seed} w{at}")) for at, mine in enumerate(run.names)]
        threads += [threading.Thread(target=run.reader, args=(f"{seed} r{at}",)) for at in range(args.readers)]
        threads += [threading.Thread(target=run.viewer, args=(film, film_bytes)) for _ in range(2)]
        for thread in threads:
            thread.start()
        if args.dead:
            # For good: they come back only when the load has ended, to be compared.
            for group in {member.group for member in cluster.of("storage")}:
                cluster.of("storage", group)[-1].die()
        faults = threading.Thread(target=run.one_fault, args=(args.every,))
        faults.start()
        try:
            time.sleep(args.minutes * 60)
        finally:
            run.stop.set()
        faults.join()
        for thread in threads:
            thread.join()
        checked = run.at_rest()
        say(f"{json.dumps(run.counts)}; {len(run.faults)} faults; {checked} answers compared at rest")
        took = sorted(seconds for _, seconds in run.latencies)
        worst_gap = max((gap for _, gap in run.gaps), default=0)
        say(f"GETs: median {took[len(took) // 2] * 1000:.1f} ms, p99 {took[int(len(took) * 0.99)] * 1000:.1f} ms, worst {took[-1]:.2f} s; failed (over 1 s, or never) {run.counts['gets failed'] / len(took):.4%}")
        say(f"viewers: {len(run.gaps)} pieces, longest wait {worst_gap:.2f} s; waits over 1 s at {[(round(at, 1), round(gap, 2)) for at, gap in run.gaps if gap > 1.0][:20]}")
        for at, seconds, path, problem in run.failures[:30]:
            say(f"    GET of {path} at {at:.1f} s took {seconds:.2f} s; {problem}")
        if args.logs:
            folder = pathlib.Path(args.logs)
            folder.mkdir(parents=True, exist_ok=True)
            for host in lab.hosts.values():
                for log in [*host.dir.glob("*.log"), *host.dir.glob("glusterlog/*.log")]:
                    (folder / f"{host.name}-{log.name}").write_bytes(log.read_bytes())
        in_time = run.counts["gets failed"] <= len(took) * 0.0001 and worst_gap <= 1.0
        kept = not run.wrong and (in_time or args.times == "say")
        say(f"{'kept' if kept else 'NOT kept'}: {len(run.wrong)} wrong (lost, old, back, wrong bytes, not healed); seed {seed}")
        sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
