#!/usr/bin/env bash
# Train on a slice of a GKE cluster that xpk made (Cloud TPU).
#
#   launch/xpk.sh --cluster=my-cluster --tpu-type=v5litepod-256 --zone=Z
#       [--project=P] [--workload=NAME] [--restarts=10] [--commit=HEAD]
#       [--dry-run] -- --config=configs/quickstart.py
#       --workdir=/mnt/bucket/quickstart
#
# Sends the files of one commit, on top of a Python image, and runs tpu_setup.sh
# and `jopd train --distributed` on all hosts; what follows `--` goes to
# `jopd train`. Only committed files travel. The workdir must be a folder that
# all hosts share, such as a bucket that the cluster mounts. When a host is lost
# the workload is started again and goes on from the last checkpoint. Needs xpk
# and Docker, logged in.
#
#   --cluster, --tpu-type       of xpk; `xpk cluster list` shows them
#   --zone, --project           or ZONE, PROJECT in the environment
#   --workload                  its name in the cluster (jopd-<commit>)
#   --restarts                  how often to start again (10)
#   --commit                    what to run (HEAD)
#   --dry-run                   print the command instead of running it
#
# Not yet run on a cluster: its command is tested against a stand-in for xpk.
set -euo pipefail

cluster='' type='' zone=${ZONE-} project=${PROJECT-} workload='' restarts=10
commit=HEAD dry=''
while (($#)); do
  case $1 in
    --cluster=*) cluster=${1#*=} ;;
    --tpu-type=*) type=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --workload=*) workload=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --commit=*) commit=${1#*=} ;;
    --dry-run) dry=yes ;;
    --help | -h)
      sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
      exit
      ;;
    --) shift && break ;;
    *) echo "xpk.sh: unknown argument $1; see --help" >&2 && exit 2 ;;
  esac
  shift
done
if [[ -z $cluster || -z $type || -z $zone || $# -eq 0 ]]; then
  echo 'xpk.sh: expected --cluster, --tpu-type, --zone and, after --, the' \
    'arguments of jopd train; see --help' >&2
  exit 2
fi

cd "$(dirname "$0")/.."
label=jopd-$(git rev-parse --short "$commit")
if [[ -n $(git status --porcelain) ]]; then
  echo "xpk.sh: uncommitted changes stay here; running $label" >&2
fi
files=$(mktemp -d)
trap 'rm -rf "$files"' EXIT
git archive "$commit" | tar -x -C "$files"

printf -v arguments ' %q' "$@"
command=(
  xpk workload create
  --cluster="$cluster" --tpu-type="$type" --zone="$zone"
  --workload="${workload:-$label}" --max-restarts="$restarts"
  --base-docker-image=python:3.12 --script-dir="$files"
  --command="bash tpu_setup.sh && .venv-tpu/bin/jopd train --distributed$arguments"
)
[[ -z $project ]] || command+=(--project="$project")
if [[ $dry ]]; then
  printf '%q ' "${command[@]}"
  echo
else
  "${command[@]}"
fi
