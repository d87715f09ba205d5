#!/usr/bin/env bash
# Build docker/Dockerfile.wheel without Docker and without an image registry, start its server and let it speak.
#
#   sudo docker/build_without_registry.sh                                     into ./image.wav
#   sudo docker/build_without_registry.sh --volume /etc/pip.conf:/etc/pip.conf:ro    arguments go to buildah
#
# Needs root, Debian's packages buildah and debootstrap, and some 6 GB. The base is made by debootstrap in place of debian:12-slim. The
# isolation is chroot: it needs no container runtime, but proves nothing about cgroups, a read-only root or the limit of /dev/shm.
# WORK     folder of base, layers and container (default: /var/tmp/qwen3-tts-image); it stays, so that the next build is shorter
# MIRROR   mirror of Debian (default: that of debootstrap)
# DRIVER   storage driver of buildah (default: overlay; vfs works everywhere and takes five times the space)
set -euo pipefail
source "$(dirname "$0")/../scripts/usage.sh"
cd "$(dirname "$0")/.."
work=${WORK:-/var/tmp/qwen3-tts-image}
base=localhost/qwen3-tts-base
image=localhost/qwen3-tts-triton:wheel
mkdir -p "$work"
build=(buildah --root "$work/storage" --runroot "$work/run" --storage-driver "${DRIVER:-overlay}")

if ! "${build[@]}" inspect --type image "$base" >/dev/null 2>&1; then
    [[ -f $work/base/etc/debian_version ]] || debootstrap --variant=minbase bookworm "$work/base" ${MIRROR:+"$MIRROR"}
    container=$("${build[@]}" from scratch)
    "${build[@]}" add --quiet "$container" "$work/base" / >/dev/null
    "${build[@]}" commit --quiet --rm "$container" "$base" >/dev/null
fi
"${build[@]}" bud --isolation chroot --format docker --layers --build-arg "BASE_IMAGE=$base" --ignorefile .dockerignore \
    --file docker/Dockerfile.wheel --tag "$image" "$@" .

container=$("${build[@]}" from "$image")
output=$work/serve.txt
server=
finish() {
    [[ -z $server ]] || kill -TERM "$server" 2>/dev/null || true
    [[ -z $server ]] || wait "$server" || true
    "${build[@]}" rm "$container" >/dev/null
}
trap finish EXIT
# The image's own entry point, user and environment; free ports in place of the published ones.
run=("${build[@]}" run --isolation chroot "$container" --)
"${run[@]}" tini -s -- /opt/venv/bin/python3 scripts/serve.py --device cpu --http-port 0 --grpc-port 0 --metrics-port 0 >"$output" 2>&1 &
server=$!
until ports=$(sed -n 's/^http \([0-9]*\), grpc \([0-9]*\),.*/\1 \2/p' "$output") && [[ -n $ports ]]; do
    kill -0 "$server" 2>/dev/null || { cat "$output" >&2; echo "build_without_registry.sh: the server did not start" >&2; exit 1; }
    sleep 1
done
read -r http grpc <<<"$ports"
"${run[@]}" id
"${run[@]}" env "HEALTHCHECK_URL=http://127.0.0.1:$http" /opt/venv/bin/python3 docker/healthcheck.py
"${run[@]}" /opt/venv/bin/python3 -c 'import qwen3_tts_gateway.running'
"${run[@]}" qwen3-tts say "There is a small penguin in the window." --output /tmp/image.wav --url "localhost:$grpc"
cp "$("${build[@]}" mount "$container")/tmp/image.wav" image.wav
"${build[@]}" images
echo "the image spoke into image.wav"
