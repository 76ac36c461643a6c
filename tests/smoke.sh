#!/usr/bin/env bash
# The first five minutes, as a script: a cluster from one command, a film of several hundred MB up with
# curl, down with wget, curl and reel, read by ffprobe and ffmpeg over HTTP, deleted.
#
#   tests/smoke.sh            in a checkout; needs cargo, curl, wget, ffmpeg
set -euo pipefail
cd "$(dirname "$0")/.."
# What is built is looked for there, whatever the caller has set.
export CARGO_TARGET_DIR=$PWD/target
for program in cargo curl wget ffmpeg ffprobe; do
    command -v "$program" >/dev/null || { echo "smoke: needs $program, which is not installed" >&2; exit 1; }
done
work=$(mktemp -d)
up=
finish() {
    if [ -n "$up" ]; then kill -TERM "$up" 2>/dev/null || true; wait "$up" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap finish EXIT

echo "smoke: cargo run --release -- up"
cargo build --release --quiet
cargo run --release --quiet -- up --data "$work/data" --http 127.0.0.1:0 >"$work/up.txt" &
up=$!
for _ in $(seq 300); do
    grep -q '^ready ' "$work/up.txt" && break
    kill -0 "$up" || { echo "smoke: up ended early" >&2; exit 1; }
    sleep 0.1
done
base=$(sed -n 's/^ready //p' "$work/up.txt")
[ -n "$base" ] || { echo "smoke: not ready within 30 s" >&2; exit 1; }
reel() { target/release/reel "$@" --config "$work/data/client.toml"; }

echo "smoke: making a film"
ffmpeg -nostdin -v error -f lavfi -i "testsrc2=size=1280x720:rate=30,noise=alls=40:allf=t" -t 30 \
    -c:v mpeg4 -q:v 1 -g 15 -y "$work/film.mp4"
bytes=$(stat -c %s "$work/film.mp4")
echo "smoke: film.mp4 has $((bytes / 1000000)) MB"
[ "$bytes" -gt 200000000 ]

url=$base/ann/films/film.mp4
curl -sSf -T "$work/film.mp4" "$url" >"$work/put.json"
wget -q -O "$work/by-wget.mp4" "$url"
cmp "$work/film.mp4" "$work/by-wget.mp4"
echo "smoke: curl -T, then wget: bit for bit"
curl -sSf -r 100000000-149999999 -o "$work/part" "$url"
cmp "$work/part" <(tail -c +100000001 "$work/film.mp4" | head -c 50000000)
echo "smoke: curl -r: bit for bit"
reel get ann/films/film.mp4 -o "$work/by-reel.mp4"
cmp "$work/film.mp4" "$work/by-reel.mp4"
echo "smoke: reel get: bit for bit"

duration=$(ffprobe -v error -show_entries format=duration -of csv=p=0 "$url")
echo "smoke: ffprobe over HTTP: ${duration} s"
case $duration in 30.*) ;; *) exit 1 ;; esac
ffmpeg -nostdin -v error -ss 21.5 -i "$url" -frames:v 1 -f rawvideo -y "$work/frame.http"
ffmpeg -nostdin -v error -ss 21.5 -i "$work/film.mp4" -frames:v 1 -f rawvideo -y "$work/frame.file"
cmp "$work/frame.http" "$work/frame.file"
storage=$(sed -n 's/.*"role":"storage"[^}]*"address":"\([^"]*\)".*/\1/p' "$work/data/up.json")
# A node's metrics are up to 200 ms old (a shard hands its counts over that often).
for _ in $(seq 50); do
    ranges=$(curl -sSf "http://$storage/-/metrics" | sed -n 's/^reel_requests_total{method="GET",status="206"} //p')
    [ "${ranges:-0}" -ge 3 ] && break
    sleep 0.1
done
echo "smoke: ffmpeg -ss over HTTP: the same frame as from the file; $ranges answers were ranges"
[ "${ranges:-0}" -ge 3 ]

curl -sSf -X DELETE "$url"
[ "$(curl -s -o /dev/null -w '%{http_code}' "$url")" = 404 ]
echo "smoke: deleted: 404"
kill -TERM "$up"
wait "$up"
up=
echo "smoke: passed"
