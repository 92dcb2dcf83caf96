#!/usr/bin/env bash
#SBATCH --job-name=jopd
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
# Train on one or more nodes of a Slurm cluster with NVIDIA GPUs.
#
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh \
#       --config=configs/quickstart.py --workdir=/shared/runs/quickstart
#
# Submit it from the repository, which all nodes must see at the same path, as
# they must see the workdir. One process per node drives all GPUs of the node;
# Slurm says who they are. If one of them dies or fails, all end, and the job is
# queued again, three times at most, to go on from the last checkpoint. The same
# sbatch line does that too. All arguments go to `jopd train`. The first job makes a virtual
# environment and installs jopd with its `gpu` extra, from the first node.
#
# Environment:
#   VENV     folder of the virtual environment (.venv-gpu)
#   PYTHON   Python 3.11 or later, used to make it (python3)
#   XLA_PYTHON_CLIENT_MEM_FRACTION   share of GPU memory to reserve (0.9)
#
# Not yet run on a cluster: its commands are tested against a stand-in for srun.
set -euo pipefail

if [[ ${1-} == --help || ${1-} == -h ]]; then
  sed -n '/^# Train/,/^set /s/^# \{0,1\}//p' "$0"
  exit
fi

# sbatch runs a copy of this file, so $0 does not say where the repository is.
root=${SLURM_SUBMIT_DIR-}
if [[ -z ${SLURM_JOB_ID-} || ! -f $root/tpu_setup.sh ]]; then
  echo 'slurm.sh: submit it with sbatch from the root of the repository;' \
    'see --help' >&2
  exit 2
fi
cd "$root"
venv=${VENV:-.venv-gpu}

# pip writes the command last: if it is there, the installation was finished.
if [[ ! -x $venv/bin/jopd ]]; then
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --editable '.[gpu]'
fi

# By itself JAX would take one GPU per process under Slurm.
if ((${SLURM_GPUS_ON_NODE:-0} > 0)); then
  export JAX_LOCAL_DEVICE_IDS=${JAX_LOCAL_DEVICE_IDS:-$(seq -s, 0 \
    $((SLURM_GPUS_ON_NODE - 1)))}
fi
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}

# Whatever ends one of them ends all.
status=0
srun --ntasks-per-node=1 --kill-on-bad-exit=1 \
  "$venv/bin/jopd" train --distributed "$@" || status=$?
# Slurm queues a job again if a node is lost, but not if a step failed. These
# codes of `jopd train` do not call for another try: 2, wrong input; 4, the disk
# is full; 5, the loss is not finite; 130 and 143, a signal asked it to stop.
# All others do, also 1, an error with a traceback: it may be of the machine.
case $status in
  0 | 2 | 4 | 5 | 130 | 143) ;;
  *)
    if ((${SLURM_RESTART_COUNT:-0} < 3)); then
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$status"
