#!/usr/bin/env bash
# Builds deploy/Dockerfile and runs the image where no Docker engine is to be had: Debian, root, buildah and podman.
#   deploy/try_image.sh out/model
# The base image is made by debootstrap and stored under the name that the Dockerfile asks for; packages are downloaded
# by this machine's pip, whatever its settings, and given to the build. Prints one line of JSON with what was measured.
# Exit codes: 0 fine, 77 a tool or the network is missing (says which), 1 anything else.
set -euo pipefail
cd "$(dirname "$0")/.."
model=${1:?"the folder of an exported model below this repository, such as out/model"}
image=localhost/mtl-serve work=$(mktemp -d) name=mtl-try-$$ port=${PORT:-8765} python=${PYTHON:-python3}
say() { echo "try_image: $*" >&2; }
skip() { say "skipped: $*"; exit 77; }
run() {
    podman --cgroup-manager cgroupfs --runtime runc run --network host --no-healthcheck --read-only --cap-drop all \
        --security-opt no-new-privileges --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 "$@"
}
finish() {
    podman kill "$name" >/dev/null 2>&1 || true
    podman rm -f "$name" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap finish EXIT

for tool in buildah podman runc debootstrap; do
    command -v "$tool" >/dev/null || skip "$tool is not installed"
done
[ "$(id -u)" = 0 ] || skip "needs root"
version=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
base=docker.io/library/python:$version-slim
if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
    say "making $base of Debian's packages"
    # shellcheck disable=SC1091
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -v security | head -1)
    timeout 150 debootstrap --variant=minbase --include=python3-venv,python-is-python3,ca-certificates \
        "$release" "$work/root" "$mirror" >"$work/log" 2>&1 || skip "debootstrap got no packages: $(tail -1 "$work/log")"
    rm -rf "$work"/root/var/cache/apt/*.bin "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
    container=$(buildah from scratch)
    buildah add -q "$container" "$work/root" / >/dev/null
    buildah commit -q "$container" "$base" >/dev/null
    buildah rm "$container" >/dev/null
fi

container=$(buildah from --pull-never "$base")
buildah run --isolation chroot "$container" true >/dev/null 2>&1 || works=no
buildah rm "$container" >/dev/null
[ "${works:-yes}" = yes ] && run --rm "$base" true >/dev/null 2>&1 || skip "containers can't be run here"

say "downloading the packages of the serving image"
"$python" - >"$work/serve.txt" <<'PYTHON'
import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["serve"], sep="\n")
PYTHON
timeout 150 "$python" -m pip download -qqq --disable-pip-version-check --only-binary :all: --python-version "$version" \
    -c requirements.lock -r "$work/serve.txt" -d "$work/wheels" || skip "pip got no packages"
printf '[global]\nno-index = true\nfind-links = /wheels\n' >"$work/pip.conf"

say "building $image"
start=$(date +%s.%N)
buildah build -q --isolation chroot --network host --pull-never --build-arg "PYTHON=$version" --build-arg "MODEL=$model" \
    --volume "$work/wheels:/wheels:ro" --volume "$work/pip.conf:/etc/pip.conf:ro" \
    --format docker -f deploy/Dockerfile -t "$image" . >/dev/null
built=$(date +%s.%N)

say "looking into it"
run --rm --entrypoint python "$image" -c '
import importlib.util, os, pathlib
assert os.getuid() == 10001, os.getuid()
assert importlib.util.find_spec("torch") is None, "torch is in the image"
for place in ("/app/x", "/app/model/x", "/opt/serve/x", "/etc/x"):
    try:
        pathlib.Path(place).write_text("")
    except OSError:
        continue
    raise AssertionError(f"could write {place}")
'
say "starting it"
begun=$(date +%s.%N)
run -d --name "$name" "$image" python -m mtl_helpers.service /app/model --port "$port" >/dev/null
"$python" - "$port" "$begun" "$built" "$start" "$(podman image inspect "$image" --format '{{.Size}}')" <<'PYTHON'
import json, sys, time, urllib.request
port, begun, built, start, size = (float(word) for word in sys.argv[1:])
address = f"http://127.0.0.1:{int(port)}"
while True:
    try:
        urllib.request.urlopen(f"{address}/ready", timeout=2).read()
        break
    except OSError:
        if time.time() - begun > 60:
            raise
        time.sleep(0.05)
ready = time.time() - begun
body = json.dumps({"texts": ["Could Ana Duarte send the minutes?"]}).encode()
request = urllib.request.Request(f"{address}/predict", body, {"content-type": "application/json"})
answer = json.loads(urllib.request.urlopen(request, timeout=10).read())
assert set(answer["predictions"][0]) >= {"topic", "entities"}, answer
first, count = time.perf_counter(), 0
while time.perf_counter() - first < 3:
    urllib.request.urlopen(request, timeout=10).read()
    count += 1
measured = {"build_seconds": built - start, "image_mb": size / 1e6, "ready_seconds": ready, "requests_a_second": count / 3}
print(json.dumps({name: round(value, 2) for name, value in measured.items()}))
PYTHON
say "stopping it"
podman --cgroup-manager cgroupfs --runtime runc stop -t 20 "$name" >/dev/null
code=$(podman inspect "$name" --format '{{.State.ExitCode}}')
[ "$code" = 0 ] || { say "it ended with exit code $code after SIGTERM, expected 0"; podman logs "$name" >&2; exit 1; }
say "fine"
