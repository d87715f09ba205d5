#!/usr/bin/env bash
# Install, serve a checkpoint with Triton, speak one sentence chunk by chunk into demo.wav, and shut everything down.
#
#   scripts/demo.sh                                                    the small voice of this repository, on the CPU
#   scripts/demo.sh --studio                                           its studio: a page in the browser, until Ctrl-C
#   MODEL=/models/Qwen3-TTS-12Hz-1.7B-CustomVoice scripts/demo.sh      real weights, on the first GPU (else the CPU)
#
# --studio starts the gateway, too: the page, OpenAI's and ElevenLabs' APIs, Wyoming (docs/gateway.md)
#
# TEXT    text to speak          VOICE   speaker of a CustomVoice checkpoint (default: its first)
# DEVICE  as in serve.py         VENV    virtual environment (default: .venv); for other variables see install.sh
# Ports with --studio; 0 takes a free one:
# PORT       of the page and the APIs (default: 8880)
# GRPC_PORT  of Triton, for qwen3-tts and the Python clients (default: 8001)
# WYOMING_PORT  for Home Assistant (default: 10200)
set -euo pipefail
source "$(dirname "$0")/usage.sh"
studio=
for argument in "$@"; do
    case $argument in
        --studio) studio=yes ;;
        -h | --help) usage; exit ;;
        *) echo "demo.sh: '$argument' is not known; allowed: --studio, --help" >&2; exit 2 ;;
    esac
done
if [[ -n ${MODEL:-} ]]; then
    [[ -f $MODEL/config.json ]] || { echo "demo.sh: MODEL=$MODEL is not a checkpoint folder: it has no config.json" >&2; exit 2; }
    MODEL=$(realpath "$MODEL")
fi
cd "$(dirname "$0")/.."

text=${TEXT:-"Hello from Triton. This sentence was streamed while it was being spoken."}
venv=$(realpath -m "${VENV:-.venv}")
work=build/demo
server_log=$work/server.log
server_output=$work/serve.txt
server_pid=
failed= # what the server did, if that ends the demo

stop_server() {
    local code=$?
    trap '' INT TERM
    trap - EXIT
    if [[ -n $server_pid ]]; then
        local server_code=0
        kill -TERM "$server_pid" 2>/dev/null || true
        wait "$server_pid" || server_code=$?
        [[ $code -ne 0 ]] || code=$server_code
        [[ $server_code -eq 0 ]] || failed=${failed:-"the server ended with code $server_code"}
    fi
    if [[ -n $failed ]]; then
        echo "--- $failed; serve.py said (Triton's own log is $server_log):" >&2
        tail -n 20 "$server_output" >&2
        [[ -z $studio ]] || echo "--- in demo.sh the variables PORT, GRPC_PORT and WYOMING_PORT choose the ports; see --help" >&2
    fi
    exit "$code"
}
trap stop_server EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

echo "installing into $venv (the first time takes some minutes)"
VENV=$venv scripts/install.sh run
export PATH="$venv/bin:$PATH" TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
mkdir -p "$work"

voice=scripts/voice_in_the_box/checkpoint
if [[ -n ${MODEL:-} ]]; then
    model=$MODEL
    device=${DEVICE:-auto}
elif [[ -f $voice/model.safetensors ]]; then
    model=$voice
    device=${DEVICE:-cpu}
    echo "NOTE: this is the voice in the box, a small checkpoint trained on synthetic speech; MODEL=/path/to/checkpoint speaks with another"
else
    # Its name contains a hash of the scripts that write it, so that an edit of them makes a new one.
    model=$work/checkpoint-$(cat scripts/make_checkpoint.py scripts/random_checkpoint/*.py | sha256sum | cut -c1-12)
    if [[ ! -d $model ]]; then
        rm -rf "$model.part"
        python scripts/make_checkpoint.py "$model.part"
        mv "$model.part" "$model"
    fi
    device=${DEVICE:-cpu}
    echo "NOTE: this checkpoint has random weights, so the audio is noise; set MODEL=/path/to/checkpoint to hear speech"
fi

# Emptied here, because the redirection below happens in the background: the loop could read the ports of an earlier run first.
: >"$server_log"
: >"$server_output"
grpc_port=0 gateway=()
[[ -z $studio ]] || grpc_port=${GRPC_PORT:-8001} gateway=(--gateway --gateway-port "${PORT:-8880}" --wyoming-port "${WYOMING_PORT:-10200}")
python scripts/serve.py --model "$model" --device "$device" --http-port 0 --grpc-port "$grpc_port" --metrics-port 0 --log-file "$server_log" \
    "${gateway[@]}" >"$server_output" 2>&1 &
server_pid=$!
echo "starting Triton with $model on $device"
until grpc_port=$(sed -n 's/^http .*, grpc \([0-9]*\),.*/\1/p' "$server_output") && [[ -n $grpc_port ]]; do
    kill -0 "$server_pid" 2>/dev/null || { failed="the server did not start"; exit 1; }
    sleep 0.2
done

if [[ -n $studio ]]; then
    url=http://localhost:$(sed -n 's/^gateway: http //p' "$server_output")
    # The gateway looks for its server once a second.
    until grep -q '"backend is ready"' "$server_output"; do
        kill -0 "$server_pid" 2>/dev/null || { failed="the server has ended"; exit 1; }
        sleep 0.2
    done
    url_option=
    [[ $grpc_port == 8001 ]] || url_option=" --url localhost:$grpc_port"
    cat <<END

The studio    $url
with curl     curl $url/v1/audio/speech -H "Content-Type: application/json" -d '{"input": "Nice to meet you."}' -o hello.mp3
with openai   OpenAI(base_url="$url/v1", api_key="none").audio.speech.create(model="tts-1", voice="alloy", input="Nice to meet you.")
in a shell    source $venv/bin/activate; qwen3-tts say "Nice to meet you." -o hello.wav$url_option
Home Assistant: Wyoming on port $(sed -n 's/^gateway: wyoming //p' "$server_output"). More tools: client/examples/settings.md

Ctrl-C ends it.
END
    trap 'exit 0' INT TERM  # the way to end it, and no failure
    wait "$server_pid" || { failed="the server has ended"; exit 1; }
    exit
fi

say=(qwen3-tts say "$text" --output demo.wav --url "localhost:$grpc_port" --seed 9 --chunks)
[[ -z ${VOICE:-} ]] || say+=(--voice "$VOICE")
echo "speaking: $text"
"${say[@]}"
echo "stopping the server"
