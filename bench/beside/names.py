#!/usr/bin/env python3
"""GETs of 4 KiB files by name when the names are ten million and asked for uniformly, so that the name cache misses: rate,
p99, what a miss costs, and the node's memory; SQLite and PostgreSQL. The names share a thousand objects, which are in
memory: what is measured is finding a name. Beside it the same with one name. Server and wrk share all cores."""

import argparse
import sqlite3

import puts
from common import *

OBJECTS = 1000
COLUMNS = "object, grp, path, bytes, type, crc, modified_ms, hlc, node"


def fill_sqlite(path, names):
    catalog = sqlite3.connect(path, timeout=60)
    catalog.execute("INSERT INTO users (name, grp) VALUES ('many', 1)")
    catalog.execute(f"CREATE TEMP TABLE seed AS SELECT row_number() OVER (ORDER BY name) - 1 AS k, {COLUMNS} FROM files WHERE user = 'seed' AND object <> 0")
    catalog.execute("CREATE UNIQUE INDEX temp.seed_k ON seed (k)")
    catalog.execute(f"""
        WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {names})
        INSERT INTO files (user, name, {COLUMNS}) SELECT 'many', printf('%08d', i), {COLUMNS} FROM n CROSS JOIN seed ON k = i % {OBJECTS}""")
    catalog.commit()
    catalog.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    catalog.close()


def fill_postgres(url, names):
    sql = f"""
        INSERT INTO users (name, grp) VALUES ('many', 1);
        CREATE TEMP TABLE seed AS SELECT row_number() OVER (ORDER BY name) - 1 AS k, {COLUMNS} FROM files WHERE "user" = 'seed' AND object <> 0;
        CREATE UNIQUE INDEX ON seed (k);
        INSERT INTO files ("user", name, {COLUMNS}) SELECT 'many', lpad(i::text, 8, '0'), {COLUMNS} FROM generate_series(0, {names} - 1) AS i JOIN seed ON k = i % {OBJECTS};"""
    subprocess.run(["psql", url, "-q", "-v", "ON_ERROR_STOP=1", "-c", sql], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--names", type=int, default=10_000_000)
    parser.add_argument("--catalogs", default="sqlite,postgres")
    args = parser.parse_args()
    need("wrk", REEL)
    for kind in args.catalogs.split(","):
        with Bench() as bench:
            url = puts.postgres(bench) if kind == "postgres" else f"sqlite:{bench.dir}/catalog.db"
            node, port, _, _ = bench.reel(shards=cores(), catalog=url)
            data = os.urandom(4096)
            for at in range(OBJECTS):
                put(port, f"seed/{at}", data)
            began = time.monotonic()
            if kind == "postgres":
                fill_postgres(url, args.names)
            else:
                fill_sqlite(bench.dir / "catalog.db", args.names)
            say(f"{kind}: {args.names} names entered in {time.monotonic() - began:.0f} s")
            script = bench.dir / "get.lua"
            script.write_text(f"""
function setup(thread) seed = (seed or 0) + 1 thread:set("seed", seed) end
function init(arguments) math.randomseed(os.time() * 16 + seed) end
request = function() return wrk.format("GET", string.format("/many/%08d", math.random(0, {args.names - 1}))) end
""")
            found = {"one": [], "many": []}
            for round_ in range(args.rounds + 1):
                for what in found:
                    before = threads_cpu(node.pid)
                    got = wrk(f"http://127.0.0.1:{port}/many/00000000", 64, args.seconds if round_ else 3, script if what == "many" else None, threads=2, core=None)
                    cost = (threads_cpu(node.pid) - before) / got["requests"] * 1e6
                    assert got["bad"] == 0, got["text"]
                    if round_:
                        found[what].append((got["rate"], got["p99_ms"], cost))
                        say(f"  round {round_} {what}: {got['rate']:.0f}/s, p99 {got['p99_ms']:.2f} ms, {cost:.1f} us of the node's CPU each; memory {memory_kib(node.pid) / 1024:.0f} MiB")
            for what, values in found.items():
                say(f"{kind}, {what}: {spread([rate for rate, _, _ in values], 0)}/s, p99 {spread([p99 for _, p99, _ in values])} ms, {spread([cost for *_, cost in values], 1)} us of CPU each")
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/-/metrics").read().decode()
            hits = {result: int(count) for result, count in re.findall(r'reel_name_cache_total\{result="(\w+)"\} (\d+)', text)}
            say(f"{kind}: name cache {hits}; RssAnon {memory_kib(node.pid) / 1024:.0f} MiB at the end")


if __name__ == "__main__":
    main()
