# Arguments: for each layer its chain id in the engine's store, and the serial number of its disk.
set -eu
docker load --quiet >/dev/null
store=/var/lib/docker
while [ $# -ge 2 ]; do
    chain=$1 serial=$2
    shift 2
    place=$store/overlay2/$(cat "$store/image/overlay2/layerdb/sha256/$chain/cache-id")/diff
    for disk in /sys/block/*; do
        [ "$(cat "$disk/serial" 2>/dev/null)" = "$serial" ] || continue
        device=/root/.hutch-$serial
        [ -b "$device" ] || mknod "$device" b $(tr : ' ' <"$disk/dev")
        mount -t erofs,squashfs -o ro,noatime "$device" "$place"
    done
    mountpoint -q "$place"
done
