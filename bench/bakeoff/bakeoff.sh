#!/usr/bin/env bash
# Runs every runtime in turn on core 0, wrk on core 1: requests a second, and the server's CPU a request.
#   bench/bakeoff/bakeoff.sh [ROUNDS [SECONDS]]        needs wrk and at least two cores
set -euo pipefail
cd "$(dirname "$0")"
rounds=${1:-5} seconds=${2:-4}
command -v wrk >/dev/null || { echo "bakeoff: needs wrk" >&2; exit 1; }
cargo build --release --quiet
ticks=$(getconf CLK_TCK)
cpu() { awk '{print $14 + $15}' "/proc/$1/stat"; }
for round in $(seq "$rounds"); do
    for runtime in monoio tokio-uring glommio tokio; do
        port=$((20000 + RANDOM % 20000))
        taskset -c 0 target/release/reel-bakeoff "$runtime" "127.0.0.1:$port" &
        server=$!
        for _ in $(seq 50); do (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.05; done
        before=$(cpu $server)
        taskset -c 1 wrk -t1 -c64 -d"${seconds}s" "http://127.0.0.1:$port/" >/tmp/bakeoff.$$
        after=$(cpu $server)
        kill $server; wait $server 2>/dev/null || true
        requests=$(awk '/requests in/ {print $1}' /tmp/bakeoff.$$)
        awk -v r="$round" -v n="$runtime" -v q="$requests" -v s="$seconds" -v c=$((after - before)) -v t="$ticks" \
            'BEGIN { printf "round %d  %-12s %7.0f requests/s  %5.1f us of CPU a request\n", r, n, q / s, c / t * 1e6 / q }'
    done
done
rm -f /tmp/bakeoff.$$
