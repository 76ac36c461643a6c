#!/usr/bin/env bash
# Clients and players that others wrote, on real files of a real cluster: redbot, curl, wget, aria2c, ffmpeg, VLC, mpv,
# and headless Chromium with a plain <video>, hls.js, dash.js and video.js. Screenshots stay in target/players/.
#
#   tests/players.sh          in a checkout; needs cargo and the programs below; fetches the players from npm and redbot
#                             from PyPI into target/players/ when they are not there
set -euo pipefail
cd "$(dirname "$0")/.."
# What is built is looked for there, whatever the caller has set.
export CARGO_TARGET_DIR=$PWD/target
CHROMIUM=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
for program in cargo curl wget ffmpeg ffprobe aria2c cvlc mpv node npm python3 "${CHROMIUM:-chromium}"; do
    command -v "$program" >/dev/null || { echo "players: needs $program, which is not installed" >&2; exit 1; }
done
export CHROMIUM
work=$(mktemp -d)
kept=$PWD/target/players
mkdir -p "$kept"
up=
finish() {
    if [ -n "$up" ]; then kill -TERM "$up" 2>/dev/null || true; wait "$up" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap finish EXIT
say() { echo "players: $*"; }
fail() { echo "players: $*" >&2; exit 1; }

# The players: exact versions, from package.json.
if ! cmp -s tests/players/package.json "$kept/package.json"; then
    cp tests/players/package.json "$kept/package.json.new"
    (cd "$kept" && mv package.json.new package.json && npm install --no-package-lock --no-audit --no-fund --silent) ||
        { rm -f "$kept/package.json"; fail "npm install failed"; }
fi
[ -x "$kept/venv/bin/redbot" ] || { python3 -m venv "$kept/venv" && "$kept/venv/bin/pip" install --quiet redbot==2.7.1; }

cargo build --release --quiet
target/release/reel up --data "$work/data" --http 127.0.0.1:0 >"$work/up.txt" &
up=$!
for _ in $(seq 300); do
    grep -q '^ready ' "$work/up.txt" && break
    kill -0 "$up" || fail "up ended early"
    sleep 0.1
done
base=$(sed -n 's/^ready //p' "$work/up.txt")
storage=$(sed -n 's/.*"role":"storage"[^}]*"address":"\([^"]*\)".*/\1/p' "$work/data/up.json")
[ -n "$base" ] || fail "not ready within 30 s"

# A tree as a publisher makes it: a film, a WebM, an HLS and a DASH rendering, a picture, subtitles.
tree=$work/tree
mkdir -p "$tree/hls" "$tree/hls-fmp4" "$tree/dash"
source=(-f lavfi -i "testsrc2=size=640x360:rate=25" -f lavfi -i "sine=frequency=440" -t 30)
h264=(-c:v libx264 -preset ultrafast -pix_fmt yuv420p -g 50 -c:a aac)
ff() { ffmpeg -nostdin -v error -y "$@"; }
ff "${source[@]}" "${h264[@]}" -movflags +faststart "$tree/film.mp4"
ff "${source[@]}" -c:v libvpx -deadline realtime -cpu-used 8 -b:v 600k -c:a libvorbis "$tree/film.webm"
ff -i "$tree/film.mp4" -c copy -hls_time 4 -hls_playlist_type vod -master_pl_name master.m3u8 "$tree/hls/video.m3u8"
ff -i "$tree/film.mp4" -c copy -hls_time 4 -hls_playlist_type vod -hls_segment_type fmp4 -master_pl_name master.m3u8 "$tree/hls-fmp4/video.m3u8"
ff -i "$tree/film.mp4" -c copy -seg_duration 4 -f dash "$tree/dash/film.mpd"
ff -i "$tree/film.mp4" -frames:v 1 "$tree/poster.jpg"
printf 'WEBVTT\n\n00:00.000 --> 00:10.000\nA subtitle.\n' >"$tree/film.vtt"
target/release/reel import --user ann --prefix show/ "$tree" --config "$work/data/client.toml" >/dev/null
say "imported $(find "$tree" -type f | wc -l) files"

url=$base/ann/show/film.mp4
bytes=$(stat -c %s "$tree/film.mp4")
same() { cmp -s "$1" "$tree/film.mp4" || fail "$2: not the same bytes"; say "$2: bit for bit"; }
curl -sSf -o "$work/curl" "$url" && same "$work/curl" "curl"
head -c $((bytes / 3)) "$tree/film.mp4" >"$work/wget"
wget -q -c -O "$work/wget" "$url" && same "$work/wget" "wget -c"
head -c $((bytes / 2)) "$tree/film.mp4" >"$work/curl-c"
curl -sSf -C - -o "$work/curl-c" "$url" && same "$work/curl-c" "curl -C -"
aria2c -q -x 16 -s 16 -k 1M --min-split-size=1M -d "$work" -o aria2c "$url" && same "$work/aria2c" "aria2c -x 16"

duration() { ffprobe -v error -show_entries format=duration -of csv=p=0 "$1"; }
for name in film.mp4 film.webm hls/master.m3u8 dash/film.mpd; do
    found=$(duration "$base/ann/show/$name")
    case $found in 30.* | 29.9*) say "ffprobe $name: $found s" ;; *) fail "ffprobe $name: $found s" ;; esac
    ff -ss 20 -i "$base/ann/show/$name" -frames:v 25 -pix_fmt yuv420p -f rawvideo "$work/frames.http"
    ff -ss 20 -i "$tree/$name" -frames:v 25 -pix_fmt yuv420p -f rawvideo "$work/frames.file"
    frames=$(($(stat -c %s "$work/frames.http") / (640 * 360 * 3 / 2)))
    cmp "$work/frames.http" "$work/frames.file" && [ "$frames" = 25 ] || fail "ffmpeg -ss 20 $name: $frames frames"
    say "ffmpeg -ss 20 $name: the same 25 frames as from the file"
done

# VLC refuses to be root.
vlc=(env HOME=/nonexistent)
if [ "$(id -u)" = 0 ]; then vlc=(setpriv --reuid=65534 --regid=65534 --clear-groups "${vlc[@]}"); fi
# VLC and mpv play without a screen; what they decoded is counted.
for name in film.mp4 hls/master.m3u8; do
    "${vlc[@]}" timeout 60 cvlc -vv --no-audio --vout dummy --start-time=20 --stop-time=23 --play-and-exit "$base/ann/show/$name" >"$work/vlc.log" 2>&1 ||
        { tail -20 "$work/vlc.log" >&2; fail "VLC $name"; }
    grep -q "Received first picture" "$work/vlc.log" || { tail -20 "$work/vlc.log" >&2; fail "VLC $name: no picture"; }
    say "VLC $name: played from 20 s on"
    mpv --no-config --vo=null --ao=null --no-audio --start=20 --length=3 --untimed --frames=60 --msg-level=all=info "$base/ann/show/$name" >"$work/mpv.log" 2>&1 ||
        { cat "$work/mpv.log" >&2; fail "mpv $name"; }
    grep -q "End of file" "$work/mpv.log" || { cat "$work/mpv.log" >&2; fail "mpv $name"; }
    say "mpv $name: played from 20 s on"
done

# redbot asks each object in many ways; what it says of them is compared with what is known and explained.
: >"$kept/redbot.txt"
for host in "$base" "http://$storage"; do
    for name in film.mp4 film.webm film.vtt poster.jpg hls/master.m3u8 hls/video0.ts dash/film.mpd; do
        echo "== $host/ann/show/$name" >>"$kept/redbot.txt"
        "$kept/venv/bin/redbot" -o text_verbose "$host/ann/show/$name" >>"$kept/redbot.txt"
    done
done
python3 tests/players/redbot.py "$kept/redbot.txt"

NODE_MODULES=$kept/node_modules
export NODE_MODULES
cp tests/players/browser.mjs tests/players/page.html "$kept/"
node "$kept/browser.mjs" "$base" "$kept/shots"
kill -TERM "$up"
wait "$up"
up=
say "passed; screenshots in target/players/shots"
