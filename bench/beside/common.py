"""What the measurements beside rivals share: servers on one core, load on the other, CPU from /proc."""

import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
TICK = os.sysconf("SC_CLK_TCK")
SERVER_CORE = os.environ.get("REEL_SERVER_CORE", "0")
LOAD_CORE = os.environ.get("REEL_LOAD_CORE", "1")
# A cache line's way to another core and back takes some 50 ns where both share a cache (EPYC; Intel 60 to 180, by the mesh), 400 where they do not.
SHARED_CACHE_NS = 250
REEL = os.environ.get("REEL", str(ROOT / "target/release/reel"))
BENCH = os.environ.get("REEL_BENCH", str(ROOT / "target/release/reel-bench"))


def say(line):
    print(line, flush=True)


def need(*programs):
    missing = [program for program in programs if shutil.which(program) is None and not os.path.exists(program)]
    if missing:
        sys.exit(f"not found: {', '.join(missing)} (cargo build --release -p reelstore -p reel-bench; apt-get install wrk nginx-light fio)")


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for(port, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


def wait_healthy(port, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/-/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(f"port {port} is not healthy")


def threads_cpu(pid, name=None):
    """User and system seconds of a process (or of its threads whose name begins so)."""
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            text = (task / "stat").read_text()
        except OSError:
            continue
        comm = text[text.index("(") + 1 : text.rindex(")")]
        if name is None or comm.startswith(name):
            fields = text[text.rindex(")") + 2 :].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICK


def memory_kib(pid, what="RssAnon"):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+)", text)[1])


class Process:
    """A server that ends with this script."""

    def __init__(self, args, core=None, log=None, **more):
        if core is not None:
            args = ["taskset", "-c", core, *args]
        out = open(log, "ab") if log else subprocess.DEVNULL
        self.child = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=out, stderr=out, **more)
        self.pid = self.child.pid

    def stop(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(10)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()


class Bench:
    """A scratch folder and the servers in it."""

    def __init__(self, folder=None):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="reel-beside-", dir=folder or ROOT / "target"))
        self.running = []
        # Folders and further benches that end with this one.
        self.extra = []

    def __enter__(self):
        # Whoever ends this script ends its servers too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
        return self

    def __exit__(self, *_):
        for process in reversed(self.running):
            process.stop()
        for folder in [*self.extra, self.dir]:
            shutil.rmtree(folder, ignore_errors=True)

    def nested(self):
        """A bench in a folder of this one, for a second cluster; its servers end with this one's."""
        inner = Bench(self.dir)
        inner.running = self.running
        return inner

    def start(self, args, core=None, log=None, **more):
        process = Process(args, core, self.dir / log if log else None, **more)
        self.running.append(process)
        return process

    def reel(self, storage="", http="", shards=1, http_core=None, catalog=None):
        """Tracker, ID server, a storage node with `shards` shards on the server's core(s)."""
        ports = {role: free_port() for role in ("tracker", "id", "storage", "http")}
        catalog = catalog or f"sqlite:{self.dir}/catalog.db"
        top = f"""
cluster = "beside"
trackers = ["127.0.0.1:{ports['tracker']}"]
id_servers = ["127.0.0.1:{ports['id']}"]
catalog = "{catalog}"
"""
        roles = {
            "tracker": f"""
cluster = "beside"
catalog = "{catalog}"
[tracker]
listen = "127.0.0.1:{ports['tracker']}"
""",
            "id": f"""
cluster = "beside"
[id]
listen = "127.0.0.1:{ports['id']}"
mark = "{self.dir}/id/mark"
""",
            "storage": f"""{top}
[storage]
id = 101
group = 1
listen = "127.0.0.1:{ports['storage']}"
data = "{self.dir}/data"
shards = {shards}
{storage}
""",
            "http": f"""{top.replace('id_servers', '# id_servers').replace('catalog', '# catalog')}
[http]
listen = "127.0.0.1:{ports['http']}"
shards = 1
{http}
""",
        }

        def role(name, core):
            config = self.dir / f"{name}.toml"
            config.write_text(roles[name])
            process = self.start([REEL, name, "--config", str(config)], core, f"{name}.log")
            try:
                wait_for(ports[name])
                wait_healthy(ports[name])
            except TimeoutError:
                sys.exit((self.dir / f"{name}.log").read_text())
            return process

        role("tracker", LOAD_CORE)
        role("id", LOAD_CORE)
        node = role("storage", SERVER_CORE if shards == 1 else None)
        gateway = role("http", http_core) if http_core is not None else None
        return node, ports["storage"], gateway, ports["http"]

    def nginx(self, root, extra_http="", server="", core=SERVER_CORE, workers=1, open_files=20000, body=None):
        port = free_port()
        folder = self.dir / f"nginx-{port}"
        folder.mkdir()
        # Of the last sixteenth of `worker_connections` it closes those that wait: descriptors are to be what limits it.
        location = body or f"location / {{ root {root}; {server} }}"
        (folder / "nginx.conf").write_text(f"""
daemon off; master_process on; worker_processes {workers}; pid {folder}/pid; error_log {folder}/error.log;
user root;
worker_rlimit_nofile {open_files};
events {{ worker_connections {2 * open_files}; multi_accept on; }}
http {{
  include /etc/nginx/mime.types; access_log off; sendfile on; tcp_nopush on; tcp_nodelay on;
  keepalive_requests 100000000; keepalive_timeout 600;
  open_file_cache max=10000 inactive=600s; open_file_cache_valid 600s;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  {extra_http}
  server {{ listen 127.0.0.1:{port} backlog=4096; {location} }}
}}
""")
        master = self.start(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], core, "nginx.log")
        wait_for(port)
        children = pathlib.Path(f"/proc/{master.pid}/task/{master.pid}/children")
        time.sleep(0.2)
        return master, [int(pid) for pid in children.read_text().split()], port


def make_film(path, bytes_):
    """A large file whose MiBs are all alike."""
    piece = os.urandom(1 << 20)
    with open(path, "wb") as out:
        for _ in range(bytes_ >> 20):
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())


def upload(path, url):
    put = subprocess.run(["curl", "-sS", "--fail-with-body", "-T", str(path), url], capture_output=True, text=True)
    if put.returncode:
        sys.exit(f"{url} was not uploaded: {put.stdout} {put.stderr}")


def warm(url):
    """Reads it until it lies in the page cache."""
    for _ in range(4):
        subprocess.run(["curl", "-sS", "-f", "-o", "/dev/null", url], check=True)


def put(port, path, data):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", data=data, method="PUT")
    request.add_header("Content-Type", "video/mp4")
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert answer.status in (200, 201, 204), answer.status


def cores():
    return len(os.sched_getaffinity(0))


def wrk(url, connections=64, seconds=4, script=None, threads=1, core=LOAD_CORE, pre=(), arguments=()):
    args = ["wrk", "-t", str(threads), "-c", str(connections), "-d", f"{max(1, round(seconds))}s", "--latency", "--timeout", "30s", url]
    if script:
        args += ["-s", str(script), "--", *arguments]
    if core is not None:
        args = ["taskset", "-c", core, *args]
    text = subprocess.run([*pre, *args], capture_output=True, text=True, timeout=seconds + 60).stdout
    rate = re.search(r"(\d+) requests in ([\d.]+)(m?s)", text)
    requests, time_taken = int(rate[1]), float(rate[2])
    bad = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", text)
    unit = {"us": 0.001, "ms": 1, "s": 1000}
    return {
        "requests": requests,
        "rate": requests / time_taken,
        "bad": bad + (sum(map(int, errors.groups())) if errors else 0),
        "p99_ms": float(p99[1]) * unit[p99[2]] if p99 else float("nan"),
        "text": text,
    }


def askers(at, path, connections, seconds, times=None):
    """Answers and the seconds they took. They end with an error at the first answer that is not like the first."""
    args = ["taskset", "-c", LOAD_CORE, BENCH, "askers", "--server", f"127.0.0.1:{at}", "--path", f"/{path}", "--connections", str(connections), "--seconds", str(seconds)]
    done = subprocess.run([*args, *(["--times", str(times)] if times else [])], capture_output=True, text=True, timeout=seconds + 60)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    answers, took = done.stdout.split()
    return int(answers), float(took)


def cores_apart():
    """Whether the server's core and the load's share no cache: a virtual machine's host places them, and moves them. Apart, each request costs both sides a quarter more, of which the server cannot help anything."""
    return float(subprocess.run([BENCH, "cores", "--one", SERVER_CORE, "--other", LOAD_CORE], capture_output=True, text=True, check=True, timeout=60).stdout) > SHARED_CACHE_NS


def spread(values, digits=2):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
