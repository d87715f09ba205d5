#!/usr/bin/env bash
# Load a running server with NVIDIA's perf_analyzer, and print first audio, gaps and real-time factor from its exports.
#
#   scripts/perf_analyzer.sh                                   closed loops of 1, 2, 4, .. 64 streams on localhost
#   scripts/perf_analyzer.sh --streams "1 8" --rates "2 5"     some of them, then 2 and 5 requests a second (Poisson)
#   scripts/perf_analyzer.sh --offline grpc                    qwen3_tts_offline, which answers once; or: --offline http
#   scripts/perf_analyzer.sh --inputs client/perf/clone.json --model qwen3_tts_base
#   scripts/perf_analyzer.sh --find                            print how perf_analyzer is called here, and no more
#
# --url HOST:PORT     the server's gRPC port (localhost:8001); with --offline http its HTTP port (localhost:8000)
# --model NAME        the model (qwen3_tts; with --offline qwen3_tts_offline)
# --inputs FILE       what to ask for (client/perf/speech.json); beside it are examples with a recording and with an instruction.
#                     perf_analyzer fills every input with random data unless such a file says what to send
# --streams "N .."    closed loops: streams at a time, one run each; "" for none
# --rates "X .."      open loops: requests a second, one run each
# --seconds N         measured time of each run (15): perf_analyzer takes three windows of a third
# --warm-up N         seconds at the beginning of each run that the report leaves out (4), because all streams begin at once
# --requests N        measure N requests in each run, however long they take, instead of --seconds and --warm-up
# --output FOLDER     for the exports and report.json (build/perf_analyzer/results). An export has every sample, 0.5 MB for a second of
#                     speech; "audio_format": "pcm16_base64" in the file's sampling_parameters makes that 0.06 MB
# -- ARGUMENT ..      more arguments for perf_analyzer; --help of itself lists them
#
# The binary is PERF_ANALYZER if that is set, else the perf_analyzer on PATH (the container nvcr.io/nvidia/tritonserver:YY.MM-py3-sdk has
# one), else it is fetched once from PyPI into build/perf_analyzer: that of the wheel tritonclient 2.51.0, of Triton 24.10's release, which
# runs from glibc 2.34 on (Debian 12, Ubuntu 22.04). Two libraries that it needs are then taken from the wheel nvidia-pytriton
# (scripts/install.sh run).
set -euo pipefail
source "$(dirname "$0")/usage.sh"
root=$(cd "$(dirname "$0")/.." && pwd)
python=${VENV:-$root/.venv}/bin/python
[[ -x $python ]] || python=python3
cache=${PERF_ANALYZER_CACHE:-$root/build/perf_analyzer}

WHEEL=tritonclient==2.51.0
WHEEL_SHA256=c485bb0123bdf310f90bc8b03d3489b28df2ffed55b30c7eee0b795b48113d52

fail() {
    echo "perf_analyzer.sh: $1" >&2
    exit 2
}

# Set `analyzer` to the command of perf_analyzer.
find_analyzer() {
    if [[ -n ${PERF_ANALYZER:-} ]]; then
        analyzer=("$PERF_ANALYZER")
    elif command -v perf_analyzer >/dev/null; then
        analyzer=(perf_analyzer)
    else
        [[ -x $cache/perf_analyzer ]] || fetch_analyzer
        analyzer=(env "LD_LIBRARY_PATH=$cache/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$cache/perf_analyzer")
    fi
    "${analyzer[@]}" --version >/dev/null 2>&1 || fail "'${analyzer[*]}' does not run: $("${analyzer[@]}" --version 2>&1 | tail -1)"
}

fetch_analyzer() {
    [[ $(uname -sm) == "Linux x86_64" ]] || fail "there is a binary for Linux on x86_64 alone; put a perf_analyzer of your own on PATH"
    local work
    mkdir -p "$cache/lib"
    work=$(mktemp -d "$cache/fetch.XXXX")
    echo "fetching perf_analyzer from PyPI ($WHEEL)" >&2
    echo "$WHEEL --hash=sha256:$WHEEL_SHA256" >"$work/requirements.txt"
    # Its tag is manylinux1, which pip takes for no modern Python by itself.
    "$python" -m pip --disable-pip-version-check download --quiet --no-deps --require-hashes --only-binary :all: \
        --platform manylinux1_x86_64 --dest "$work" --requirement "$work/requirements.txt" || fail "the wheel cannot be fetched from PyPI"
    "$python" - "$work" "$cache/lib" <<'PYTHON' || fail "the wheel nvidia-pytriton is needed for two libraries: scripts/install.sh run"
import sys, zipfile
from importlib.metadata import distribution
from pathlib import Path

work, libraries = map(Path, sys.argv[1:])
with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith("/bin/perf_analyzer"))
    (work / "perf_analyzer").write_bytes(wheel.read(name))
bundled = Path(distribution("nvidia-pytriton").locate_file("nvidia_pytriton.libs"))
for name, pattern in (("libb64.so.0d", "libb64-*.so.0d"), ("libcudart.so.12", "libcudart-*.so.12*")):
    (libraries / name).unlink(missing_ok=True)
    (libraries / name).symlink_to(next(bundled.glob(pattern)))
PYTHON
    chmod +x "$work/perf_analyzer"
    mv "$work/perf_analyzer" "$cache/perf_analyzer"
    rm -r "$work"
}

url='' model='' offline='' inputs=$root/client/perf/speech.json
streams="1 2 4 8 16 32 64" rates="" seconds=15 warm_up=4 output=$cache/results requests='' find='' more=()
while (($#)); do
    case $1 in
    -h | --help) usage; exit ;; # behind other options
    --find) find=yes; shift ;;
    --) more=("${@:2}"); break ;;
    --url | --model | --inputs | --streams | --rates | --seconds | --warm-up | --requests | --output | --offline)
        (($# > 1)) || fail "$1 needs a value; see --help"
        name=${1#--}
        printf -v "${name//-/_}" %s "$2"
        shift 2
        ;;
    *) fail "'$1' is not known; see --help" ;;
    esac
done
find_analyzer
[[ -z $find ]] || { printf '%q ' "${analyzer[@]}"; echo; exit; }

case $offline in
'') arguments=(-i grpc --async --streaming) ;;
grpc | http) arguments=(-i "$offline") ;;
*) fail "--offline $offline is not known; give grpc or http" ;;
esac
if [[ -n $offline ]]; then
    : "${model:=qwen3_tts_offline}"
else
    : "${model:=qwen3_tts}"
fi
if [[ $offline == http ]]; then
    : "${url:=localhost:8000}"
else
    : "${url:=localhost:8001}"
fi
[[ -f $inputs ]] || fail "--inputs: '$inputs' does not exist"
# Lengths differ between requests, so no window is ever stable in its sense: 999 % makes it take what it has measured.
arguments+=(-m "$model" -u "$url" --input-data "$inputs" --stability-percentage 999)
if [[ -n $requests ]]; then
    warm_up=0 long="$requests requests"
    arguments+=(--request-count "$requests")
else
    windows=3 long="some $((seconds + warm_up)) s" # perf_analyzer takes no fewer
    arguments+=(--max-trials $windows --measurement-interval $(((seconds + warm_up) * 1000 / windows)))
fi
arguments+=("${more[@]}")

mkdir -p "$output"
exports=()
analyze() { # NAME ARGUMENT..
    local export=$output/$1.json
    rm -f "$export"
    echo "perf_analyzer: $1, $long" >&2
    "${analyzer[@]}" "${arguments[@]}" --profile-export-file "$export" "${@:2}" >"$output/$1.log" 2>&1 ||
        { cat "$output/$1.log" >&2; fail "perf_analyzer ended with an error at $1 (its output is above; it needs requests that end in every window: --seconds)"; }
    exports+=("$export")
}
for count in $streams; do
    analyze "${offline:+offline-$offline-}streams-$count" --concurrency-range "$count"
done
for rate in $rates; do
    analyze "${offline:+offline-$offline-}rate-$rate" --request-rate-range "$rate" --request-distribution poisson
done
((${#exports[@]})) || fail "--streams and --rates are both empty"
"$python" "$root/scripts/perf_report.py" --warm-up "$warm_up" --output "$output/report.json" "${exports[@]}"
