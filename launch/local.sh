#!/usr/bin/env bash
# Train on this machine, on whatever devices JAX finds here (a CPU will do).
#
#   launch/local.sh --config=configs/quickstart.py --workdir=runs/quickstart
#
# All arguments go to `jopd train`. Paths are relative to the repository. The
# first call makes a virtual environment and installs jopd into it; delete the
# folder to install anew.
#
# Environment:
#   VENV     folder of the virtual environment (.venv)
#   PYTHON   Python 3.11 or later, used to make it (python3)
set -euo pipefail

if [[ ${1-} == --help || ${1-} == -h ]]; then
  sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
  exit
fi

cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

# pip writes the command last: if it is there, the installation was finished.
if [[ ! -x $venv/bin/jopd ]]; then
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --editable .
fi

exec "$venv/bin/jopd" train "$@"
