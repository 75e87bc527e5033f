#!/usr/bin/env bash
# A Cloud TPU slice of several hosts, from this machine, with gcloud signed in and a project set.
#   export TPU=NAME ZONE=us-west4-a       # of the slice; for `create` also:
#   export TYPE=v5litepod-16 VERSION=v2-alpha-tpuv5-lite SPOT=1   # SPOT= for one that is not spot
#   bash launch/tpu_pod.sh create
#   bash launch/tpu_pod.sh copy           # this repository to every host's ~/cryjax, set up
#   bash launch/tpu_pod.sh mount 10.0.0.2:/share       # an NFS share, at /mnt/share of every host
#   bash launch/tpu_pod.sh run pretrain --config=configs/pretrain_small.py \
#     --workdir=/mnt/share/RUN --config.data=/mnt/share/DATA
#   bash launch/tpu_pod.sh logs [HOST]    # follows it; the last line has the exit status
#   bash launch/tpu_pod.sh stop           # saves: status 75; the same `run` goes on
#   bash launch/tpu_pod.sh delete
# The hosts need one file system for the work directory. DRY_RUN=1 prints the commands.
set -euo pipefail

refuse() {
  echo "tpu_pod.sh: error: $1" >&2
  exit 2
}

what=${1:-}
[ $# -eq 0 ] || shift
case $what in
  create | copy | mount | run | logs | stop | delete | host) ;;
  *) refuse "usage: bash launch/tpu_pod.sh create|copy|mount|run|logs|stop|delete [arguments]" ;;
esac
[ "$what" = host ] || { [ -n "${TPU:-}" ] && [ -n "${ZONE:-}" ]; } ||
  refuse "set TPU, the slice's name, and ZONE"
cd "$(dirname "$0")/.."

run() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
tpu_vm() {
  local verb=$1
  shift
  run gcloud compute tpus tpu-vm "$verb" "$@" "--zone=$ZONE"
}
on() { tpu_vm ssh "$TPU" "--worker=$1" "--command=$2"; }

case $what in
  create)
    [ -n "${TYPE:-}" ] && [ -n "${VERSION:-}" ] || refuse "set TYPE and VERSION of the slice"
    tpu_vm create "$TPU" "--accelerator-type=$TYPE" "--version=$VERSION" ${SPOT:+--spot}
    ;;
  copy)
    archive=$(mktemp -d)/cryjax.tgz
    trap 'rm -r "$(dirname "$archive")"' EXIT
    run tar -czf "$archive" --exclude=__pycache__ setup.py pyproject.toml README.md cryjax configs \
      launch
    tpu_vm scp "$archive" "$TPU:cryjax.tgz" --worker=all
    # The images come with Python 3.10; uv fetches a later one.
    # shellcheck disable=SC2016 # for the hosts to expand
    on all 'set -e; mkdir -p cryjax; tar -xzf cryjax.tgz -C cryjax; cd cryjax
      python3 -m pip install --quiet --user uv; python3 -m uv python install 3.12
      export CRYJAX_EXTRAS=tpu PYTHON="$(python3 -m uv python find 3.12)"; bash launch/setup.sh'
    ;;
  mount)
    [ $# -eq 1 ] || refuse "usage: bash launch/tpu_pod.sh mount ADDRESS:/SHARE"
    on all "set -e; sudo apt-get install -y -q nfs-common; sudo mkdir -p /mnt/share
      mountpoint -q /mnt/share || sudo mount -t nfs $(printf %q "$1") /mnt/share"
    ;;
  run)
    [ $# -ge 1 ] && [ -f "cryjax/$1.py" ] || refuse "PROGRAM=${1:-}: no cryjax/${1:-}.py"
    # It outlives the connection that starts it.
    on all "nohup bash cryjax/launch/tpu_pod.sh host$(printf ' %q' "$@") \
      >>cryjax/run.log 2>&1 </dev/null &"
    ;;
  host) # what `run` runs on each host
    if kill -0 "$(cat run.pid 2>/dev/null)" 2>/dev/null; then refuse "a run is under way"; fi
    export CRYJAX_EXTRAS=${CRYJAX_EXTRAS:-tpu} CRYJAX_COORDINATOR=${CRYJAX_COORDINATOR:-auto}
    source launch/setup.sh
    python -m "cryjax.$1" "${@:2}" &
    echo $! >run.pid
    status=0
    wait $! || status=$?
    echo "tpu_pod.sh: $1 ended with status $status"
    ;;
  logs) on "${1:-0}" 'tail -n +1 -F cryjax/run.log' ;;
  stop) on all "pkill -TERM -F cryjax/run.pid" ;;
  delete) tpu_vm delete "$TPU" --quiet ;;
esac
