#!/usr/bin/env bash
# Makes the venv VENV from PYTHON: exact versions, the right build of torch, this package in editable form.
# Usage: scripts/setup.sh PYTHON VENV
set -euo pipefail
python=$1 venv=$2
say() { printf '== %s\n' "$*"; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "requirements.lock needs Python 3.11 or newer; $python is older" >&2; exit 2; }
say "venv in $venv"
"$python" -m venv "$venv" || { echo "cannot make a venv: on Debian and Ubuntu, apt install python3-venv" >&2; exit 2; }
pip install --upgrade pip

torch=$(grep '^torch==' constraints.txt)
# A bare "pip install torch" on Linux brings several GB of CUDA libraries; without an NVIDIA GPU they are of no use.
if nvidia-smi >/dev/null 2>&1; then
  say "$torch, the CUDA build: an NVIDIA GPU is here"
  pip install "$torch"
elif pip install --dry-run --no-deps --ignore-installed --report - "$torch" | grep '"version": *"[^"]*+cpu"' > /dev/null; then
  say "$torch, the CPU build that pip already knows of: no NVIDIA GPU here"
  pip install "$torch"
else
  say "$torch, the CPU build from PyTorch's own index: no NVIDIA GPU here"
  pip install --index-url https://download.pytorch.org/whl/cpu "$torch" || {
    say "that index cannot be reached; taking the default build, several GB"
    pip install "$torch"
  }
fi
say "the other packages, with the versions and hashes of requirements.lock"
pip install --require-hashes --no-deps -r requirements.lock
say "this package, editable, with its C++ extension if a compiler is here (three minutes of a core)"
pip install --no-build-isolation --no-deps -e .
pip check # setup.py may ask for what the lock lacks
"$venv/bin/python" -c 'from moe_kernels import backend; print("==", backend.extension_problem() or "the C++ extension is built")'
say "ready"
