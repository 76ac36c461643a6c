#!/bin/sh
# Makes and starts a replica 3 volume for a group's storage nodes, with the options beside this script.
#
#   make-volume.sh VOLUME HOST:/BRICK HOST:/BRICK HOST:/BRICK
#
# Run it on one host of the pool (gluster peer probe the others first). FORCE=force lets a brick lie on the root file system.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 4 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
volume=$1
shift
gluster --mode=script volume create "$volume" replica 3 "$@" ${FORCE:-}
while read -r option value; do
    case $option in '' | '#'*) continue ;; esac
    gluster --mode=script volume set "$volume" "$option" "$value"
done <"$here/options"
gluster --mode=script volume start "$volume"
