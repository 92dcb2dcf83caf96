#!/usr/bin/env bash
# Train on every host of an existing Cloud TPU slice.
#
#   launch/tpu_pod.sh --name=my-tpu --zone=us-east5-a [--project=P]
#       [--commit=HEAD] [--dry-run] -- --config=configs/quickstart.py
#       --workdir=/mnt/bucket/quickstart
#
# Copies the files of one commit to ~/jopd-<commit> on all hosts, then runs
# tpu_setup.sh and `jopd train --distributed` there; what follows `--` goes to
# `jopd train`. Only committed files travel. The workdir must be a folder that
# all hosts share, such as a mounted bucket or a network disk. The same call
# again goes on from the last checkpoint. Needs gcloud, logged in.
#
#   --name, --zone, --project   or NAME, ZONE, PROJECT in the environment
#   --commit                    what to run (HEAD)
#   --dry-run                   print the commands instead of running them
#
# Not yet run on a TPU: its commands are tested against a stand-in for gcloud.
set -euo pipefail

name=${NAME-} zone=${ZONE-} project=${PROJECT-} commit=HEAD dry=
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --commit=*) commit=${1#*=} ;;
    --dry-run) dry=yes ;;
    --help | -h)
      sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
      exit
      ;;
    --) shift && break ;;
    *) echo "tpu_pod.sh: unknown argument $1; see --help" >&2 && exit 2 ;;
  esac
  shift
done
if [[ -z $name || -z $zone || $# -eq 0 ]]; then
  echo 'tpu_pod.sh: expected --name, --zone and, after --, the arguments of' \
    'jopd train; see --help' >&2
  exit 2
fi

# Runs a command; on a dry run prints it, quoted so that a shell would run it.
run() {
  if [[ $dry ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

cd "$(dirname "$0")/.."
label=jopd-$(git rev-parse --short "$commit")
if [[ -n $(git status --porcelain) ]]; then
  echo "tpu_pod.sh: uncommitted changes stay here; running $label" >&2
fi
archive=${TMPDIR:-/tmp}/$label.tar.gz
where=(--zone="$zone" --worker=all)
[[ -z $project ]] || where+=(--project="$project")
printf -v arguments ' %q' "$@"

run git archive --output="$archive" "$commit"
run gcloud compute tpus tpu-vm scp "$archive" "$name:" "${where[@]}"
run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --command="
mkdir -p $label && tar -xzf $label.tar.gz -C $label && cd $label &&
bash tpu_setup.sh && .venv-tpu/bin/jopd train --distributed$arguments"
