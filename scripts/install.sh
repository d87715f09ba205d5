#!/usr/bin/env bash
# Create or complete the virtual environment VENV (default: .venv). Run it, or source it to call install_all:
#
#   scripts/install.sh run     for serving (the default): the package, the Triton server wheel, the gateway, traces
#   scripts/install.sh test    also the test and lint tools, with the official package as the oracle
#
# Every package comes in the version, and with the hash, that requirements/ locks (scripts/lock.sh writes it); torch for the CPU by its
# version alone. A finished install leaves a stamp, so that the next call returns at once; an edit of pyproject.toml, of requirements/ or
# of this file renews it.
# PYTHON       interpreter (default: python3; 3.10 to 3.12, because the server wheel's stub needs numpy 1.26; tests from 3.11)
# TORCH        torch version (default: 2.13.0, which is locked; another one comes as its index delivers it)
# TORCH_INDEX  package index for torch alone (default: the default index; without an NVIDIA GPU also PyTorch's CPU index)

install_all() {
    local what=$1 venv=$2 python=${PYTHON:-python3} locked_torch=2.13.0 stamp version
    local torch=${TORCH:-$locked_torch}
    [[ $what == run || $what == test ]] || { echo "install.sh: '$what' is not known; use run or test" >&2; return 2; }
    stamp=$(cat pyproject.toml scripts/install.sh requirements/*.txt <(echo "$torch") | sha256sum | cut -d' ' -f1)
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
    version=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || return 1
    [[ -f requirements/$what-$version.txt ]] || {
        echo "install.sh: requirements/ has no lock of '$what' for Python $version; set PYTHON, for tests to 3.11 or 3.12" >&2
        return 1
    }
    local pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)
    [[ $what == test ]] && pip+=(--no-compile)  # tests import few of the files; Python compiles these then
    # --no-deps, because each lock is complete: nothing else may be fetched.
    local locked=("${pip[@]}" --require-hashes --no-deps)
    if ! "$venv/bin/python" -c "import sys, torch; sys.exit(torch.__version__.split('+')[0] != '$torch')" 2>/dev/null; then
        if [[ -n ${TORCH_INDEX:-} ]]; then
            "${pip[@]}" "torch==$torch" --index-url "$TORCH_INDEX" || return 1
        elif command -v nvidia-smi >/dev/null || [[ $(uname -s) != Linux ]]; then
            if [[ $torch == "$locked_torch" ]]; then
                "${locked[@]}" --requirement "requirements/torch-cuda-$version.txt" || return 1
            else
                "${pip[@]}" "torch==$torch" || return 1
            fi
        else
            # The +cpu build has its own version, so that no index can deliver gigabytes of CUDA libraries instead. The lock below has
            # all that it needs.
            "${pip[@]}" --no-deps "torch==$torch+cpu" 2>/dev/null ||
                "${pip[@]}" --no-deps "torch==$torch+cpu" --index-url https://download.pytorch.org/whl/cpu || return 1
        fi
    fi
    "${locked[@]}" --requirement "requirements/$what-$version.txt" || return 1
    # The lock has setuptools, so the build needs no environment of its own, which would not be locked.
    "${pip[@]}" --no-deps --no-build-isolation --editable . || return 1
    if [[ $what == test ]]; then
        # torch for CUDA brings its own triton; torch for the CPU brings none, so take the one that the kernels are tested with.
        "$venv/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)' &&
            { "${locked[@]}" --requirement requirements/torch-cpu.txt || return 1; }
        # Its dependencies (a demo page, audio tools, an exact transformers) are not needed by tests/oracle.py.
        "${locked[@]}" --requirement requirements/oracle.txt || return 1
        # The oracle needs transformers 4.57.3. Tests that must also pass under 5 use a folder that only they see.
        "${locked[@]}" --upgrade --target "$venv/transformers5" --requirement requirements/transformers5.txt || return 1
    fi
    echo "$stamp" >"$venv/.installed-$what"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    set -euo pipefail
    source "$(dirname "$0")/usage.sh"
    cd "$(dirname "$0")/.."
    install_all "${1:-run}" "${VENV:-.venv}"
fi
