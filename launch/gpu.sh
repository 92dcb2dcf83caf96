#!/usr/bin/env bash
# Train on one host with one or more NVIDIA GPUs; one process drives them all.
#
#   launch/gpu.sh --config=configs/quickstart.py --workdir=runs/quickstart
#
# All arguments go to `jopd train`; how the GPUs are used is the config's
# `mesh`. CUDA_VISIBLE_DEVICES picks GPUs as usual. Paths are relative to the
# repository. The first call makes a virtual environment and installs jopd with
# its `gpu` extra: CUDA comes with the wheels, only the driver must be here.
#
# Environment:
#   VENV     folder of the virtual environment (.venv-gpu)
#   PYTHON   Python 3.11 or later, used to make it (python3)
#   XLA_PYTHON_CLIENT_MEM_FRACTION   share of GPU memory to reserve (0.9)
set -euo pipefail

if [[ ${1-} == --help || ${1-} == -h ]]; then
  sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
  exit
fi

# Without a driver JAX would fall back to the CPU and train there, slowly.
if ! nvidia-smi --query-gpu=index,name,memory.total --format=csv,noheader; then
  echo 'gpu.sh: nvidia-smi found no usable GPU; install the NVIDIA driver,' \
    'or use launch/local.sh' >&2
  exit 1
fi

cd "$(dirname "$0")/.."
venv=${VENV:-.venv-gpu}

# pip writes the command last: if it is there, the installation was finished.
if [[ ! -x $venv/bin/jopd ]]; then
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --editable '.[gpu]'
fi

# JAX reserves 0.75 of the memory so that a desktop keeps some; here the GPUs
# have nothing else to do. The rest is for CUDA's own contexts and NCCL. No XLA
# flags are set: none has been measured to help jopd.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}
# An installation that cannot see the GPUs fails, rather than use the CPU.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}
exec "$venv/bin/jopd" train "$@"
