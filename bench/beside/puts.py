#!/usr/bin/env python3
"""PUTs of new names, 4 KiB each, 64 connections, server and wrk sharing all cores. Reelstore: durable when answered,
catalog included (SQLite, PostgreSQL). Beside it in the same run: one appended write + fdatasync each; nginx's DAV PUT
and SeaweedFS (filer), which sync nothing."""

import argparse

from common import *


def postgres(bench):
    """A PostgreSQL of our own, with its defaults: every commit is synced."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb")) if os.path.isdir("/usr/lib/postgresql") else []
    if not found:
        return None
    programs, port = found[-1].parent, free_port()
    # The server refuses to be root; a folder below a private one is not for others.
    home = pathlib.Path(tempfile.mkdtemp(prefix="reel-beside-pg-", dir=bench.dir.parent))
    bench.extra.append(home)
    user = []
    if os.geteuid() == 0:
        os.chown(home, 65534, 65534)
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    subprocess.run([*user, str(programs / "initdb"), "-D", str(home / "data"), "-U", "reel", "-A", "trust", "-E", "UTF8", "--no-locale"], check=True, capture_output=True, cwd="/")
    bench.start([*user, str(programs / "postgres"), "-D", str(home / "data"), "-p", str(port), "-k", str(home), "-c", "listen_addresses=127.0.0.1"], log="postgres.log", cwd="/")
    wait_for(port)
    time.sleep(1)
    subprocess.run(["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "reel", "-d", "postgres", "-c", "create database reel"], check=True, capture_output=True)
    return f"postgres://reel@127.0.0.1:{port}/reel"


def seaweed(bench):
    weed = os.environ.get("WEED") or shutil.which("weed")
    if not weed:
        return None
    ports = [free_port() for _ in range(3)]
    folder = bench.dir / "weed"
    folder.mkdir()
    # Its gRPC ports are these and 10,000; free ones below 55,000 are all right.
    ports = [port if port < 55000 else port - 20000 for port in ports]
    bench.start([weed, "server", "-ip=127.0.0.1", f"-dir={folder}", f"-master.port={ports[0]}", f"-volume.port={ports[1]}", "-filer", f"-filer.port={ports[2]}", "-volume.max=50"], log="weed.log", cwd=str(folder))
    wait_for(ports[2], 60)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            put(ports[2], "warm/x", b"x")
            return ports[2]
        except OSError:
            time.sleep(0.5)
    sys.exit((bench.dir / "weed.log").read_text()[-2000:])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--bytes", type=int, default=4096)
    parser.add_argument("--dir", help="a folder on the disk to measure")
    args = parser.parse_args()
    need("wrk", "nginx", REEL, BENCH)
    with Bench(args.dir) as bench:
        script = bench.dir / "put.lua"
        script.write_text(f"""
local body, next_thread = string.rep("x", {args.bytes}), 0
function setup(thread) thread:set("id", next_thread) next_thread = next_thread + 1 end
function init(arguments) run, count = arguments[1], 0 end
request = function()
  count = count + 1
  return wrk.format("PUT", "/bench/" .. run .. "-" .. id .. "/" .. count, nil, body)
end
""")
        www = bench.dir / "www"
        www.mkdir()
        servers = {}
        _, port, _, _ = bench.reel(shards=cores())
        servers["reel, SQLite"] = port
        url = postgres(bench)
        if url:
            with_pg = bench.nested()
            _, port, _, _ = with_pg.reel(shards=cores(), catalog=url)
            servers["reel, PostgreSQL"] = port
        _, _, servers["nginx DAV"] = bench.nginx(www, server="dav_methods PUT; create_full_put_path on; client_body_buffer_size 16k;", core=None, workers=cores())
        port = seaweed(bench)
        if port:
            servers["SeaweedFS"] = port
        found = {name: [] for name in servers}
        floors = []
        for round_ in range(args.rounds + 1):
            out = subprocess.run([BENCH, "floor", "--dir", str(bench.dir), "--bytes", str(args.bytes), "--seconds", "2"], check=True, capture_output=True, text=True)
            floors.append(float(out.stdout))
            for name, at in servers.items():
                got = wrk(f"http://127.0.0.1:{at}/", 64, args.seconds if round_ else 1, script, threads=2, core=None, arguments=[f"r{round_}"])
                found[name].append((got["rate"], floors[-1], got["bad"], got["p99_ms"]))
                if round_:
                    say(f"  round {round_}: {name}: {got['rate']:.0f}/s, p99 {got['p99_ms']:.1f} ms, {got['bad']} refused; one write + fdatasync each: {floors[-1]:.0f}/s")
        say(f"one appended write + fdatasync each: {spread(floors[1:], 0)} a second")
        for name, values in found.items():
            values = values[1:]
            refused = sum(bad for _, _, bad, _ in values)
            say(f"{name}: {spread([rate for rate, *_ in values], 0)} PUTs of {args.bytes} B a second, {spread([rate / floor for rate, floor, *_ in values])} times the floor, p99 {spread([p99 for *_, p99 in values])} ms, {refused} refused")


if __name__ == "__main__":
    main()
