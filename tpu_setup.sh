#!/usr/bin/env bash
# Set up jopd on one Cloud TPU host; run it on every host of a slice at once.
#
#   bash tpu_setup.sh
#
# Makes .venv-tpu beside this file, installs jopd with its `tpu` extra and
# prints the host's devices. Safe to run again. On a slice of several hosts the
# devices only answer once all hosts have come this far.
# launch/tpu_pod.sh runs it for you.
#
# Not yet run on a TPU: written from the documentation of JAX and Cloud TPU.
set -euo pipefail

if [[ ${1-} == --help || ${1-} == -h ]]; then
  sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
  exit
fi

cd "$(dirname "$0")"

# The first Python that is new enough and can make virtual environments.
find_python() {
  local python
  for python in python3 python3.13 python3.12 python3.11; do
    if "$python" -c 'import ensurepip, sys
sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
      echo "$python"
      return
    fi
  done
  return 1
}

if [[ ! -x .venv-tpu/bin/python ]]; then
  if ! python=$(find_python); then
    # Ubuntu 22.04, common on TPU hosts, has Python 3.10 and offers 3.11.
    sudo apt-get update -q
    sudo apt-get install -q -y python3.12-venv ||
      sudo apt-get install -q -y python3.11-venv
    python=$(find_python)
  fi
  "$python" -m venv .venv-tpu
fi
.venv-tpu/bin/python -m pip install --quiet --editable '.[tpu]'

.venv-tpu/bin/python -c '
import jax
jax.distributed.initialize()
print(f"host {jax.process_index()} of {jax.process_count()}:", jax.devices())'
