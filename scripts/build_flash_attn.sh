#!/usr/bin/env bash
# Build only flash-attn's attention over a paged cache: forward, bfloat16, head_dim 128, one architecture.
#
#     scripts/build_flash_attn.sh TARGET [flash_attn-2.8.3.tar.gz]
#     PYTHONPATH=TARGET python scripts/serve.py --model PATH --option attention_backend=flash-attn --option kv_block_size=256
#
# flash-attn has no wheels for recent versions of CUDA and torch. This builds five of its 73 source files. The packages flash_attn
# and flash_attn_2_cuda are written into the folder TARGET. Without an archive the published one is downloaded.
# Needs nvcc of torch's CUDA version, ninja, and in Python torch, setuptools, wheel, packaging and psutil.
# ARCH: compute capability to build for (default: 90, Hopper). MAX_JOBS: number of compilers at a time.
set -euo pipefail
source "$(dirname "$0")/usage.sh"

target=$(realpath -m "${1:?usage: build_flash_attn.sh TARGET [SDIST.tar.gz]}")
archive=${2:+$(realpath "$2")}
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || { echo "build_flash_attn.sh: '$python' has no torch; set PYTHON" >&2; exit 1; }
version=2.8.3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# torch assumes that nvcc lies in the toolkit's folder, which is wrong for a wrapper on PATH. Its wheels bring the libraries' headers.
[[ -n ${CUDA_HOME:-} || ! -d /usr/local/cuda ]] || export CUDA_HOME=/usr/local/cuda
nvidia='import glob, os, torch; print(*glob.glob(os.path.dirname(torch.__path__[0]) + "/nvidia/*/include"))'
for headers in $("$python" -c "$nvidia"); do
    export CPATH=${CPATH:+$CPATH:}$headers
done
export PATH=$("$python" -c 'import os, sys; print(os.path.dirname(sys.executable))'):$PATH
command -v ninja >/dev/null || { echo "build_flash_attn.sh: ninja is missing; pip install ninja" >&2; exit 1; }

if [[ -z $archive ]]; then
    FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE "$python" -m pip download -q --no-deps --no-binary :all: --no-build-isolation \
        -d "$work" "flash-attn==$version"
    archive=$work/flash_attn-$version.tar.gz
fi
tar -C "$work" -xzf "$archive"
cd "$work/flash_attn-$version"

"$python" - <<'PYTHON'
import re
from pathlib import Path


def edit(path, pattern, replacement, count=1):
    file = Path(path)
    text, found = re.subn(pattern, replacement, file.read_text())
    assert found == count, f"{path}: {found} places look like {pattern!r}, not {count}; this script knows flash-attn 2.8.3"
    file.write_text(text)


# sources: four of the 72 kernel files, and the features that they leave out
edit("setup.py", r' *"csrc/flash_attn/src/flash_(?!fwd_(split_)?hdim128_bf16_)\w+\.cu",\n', "", count=68)
left_out = [f'"-DFLASHATTENTION_DISABLE_{name}"' for name in ("BACKWARD", "DROPOUT", "ALIBI", "SOFTCAP", "LOCAL", "UNEVEN_K")]
edit("setup.py", r'nvcc_flags = \[\n    "-O3",', "nvcc_flags = [*left_out, " + '"-O3",')
edit("setup.py", r'compiler_c17_flag=\["-O3", "-std=c\+\+17"\]', 'compiler_c17_flag=[*left_out, "-O3", "-std=c++17"]')
edit("setup.py", r"cmdclass = \{\}\n", f"cmdclass = {{}}\nleft_out = [{', '.join(left_out)}]\n")

# dispatch: one dtype, one head size, no backward
with Path("csrc/flash_attn/src/static_switch.h").open("a") as header:
    header.write("""
#undef FP16_SWITCH
#undef HEADDIM_SWITCH
#define FP16_SWITCH(COND, ...) [&] { using elem_type = cutlass::bfloat16_t; return __VA_ARGS__(); }()
#define HEADDIM_SWITCH(HEADDIM, ...) [&] { constexpr static int kHeadDim = 128; return __VA_ARGS__(); }()
""")
api = "csrc/flash_attn/flash_api.cpp"
refusal = 'TORCH_CHECK(params.is_bf16 && params.d == 128, "this flash-attn was built for bfloat16 and a head_dim of 128 only");'
edit(api, r"(void run_mha_fwd\(Flash_fwd_params &params, .*\) \{\n)", r"\1    " + refusal + "\n")
edit(api, r"run_mha_bwd_<elem_type, kHeadDim, Is_causal>\(params, stream\);", 'TORCH_CHECK(false, "built without backward");')
PYTHON

FLASH_ATTENTION_FORCE_BUILD=TRUE FLASH_ATTN_CUDA_ARCHS=${ARCH:-90} MAX_JOBS=${MAX_JOBS:-$(nproc)} NVCC_THREADS=1 \
    "$python" -m pip install --no-index --no-deps --no-build-isolation --no-cache-dir --upgrade --target "$target" .
cd "$target"
PYTHONPATH=$target "$python" -c 'import flash_attn; print("flash-attn", flash_attn.__version__, "in", flash_attn.__path__[0])'
