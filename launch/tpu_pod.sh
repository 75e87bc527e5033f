#!/usr/bin/env bash
# Runs a Cloud TPU slice of several hosts from this machine, with gcloud signed in, a project set.
#   export TPU=NAME ZONE=us-west4-a       # of the slice; for `create` also:
#   export TYPE=v5litepod-16 VERSION=v2-alpha-tpuv5-lite SPOT=1   # SPOT= for one that is not spot
#   bash launch/tpu_pod.sh create
#   bash launch/tpu_pod.sh copy           # copies this to every host's ~/cryjax and installs
#   bash launch/tpu_pod.sh mount 10.0.0.2:/share       # NFS share at /mnt/share of every host
#   bash launch/tpu_pod.sh run pretrain --config=configs/pretrain_small.py \
#     --workdir=/mnt/share/RUN --config.data=/mnt/share/DATA
#   bash launch/tpu_pod.sh logs [HOST]    # follows it; `logs all`: last lines of every host
#   bash launch/tpu_pod.sh stop           # saves: status 75; the same `run` resumes
#   bash launch/tpu_pod.sh delete
# The hosts need a shared file system for the work directory. DRY_RUN=1 prints the commands.
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
    # The images have Python 3.10; uv fetches a later one.
    # shellcheck disable=SC2016 # expanded by the hosts
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
    # Outlives the connection that starts it.
    on all "nohup bash cryjax/launch/tpu_pod.sh host$(printf ' %q' "$@") \
      >>cryjax/run.log 2>&1 </dev/null &"
    ;;
  host) # what `run` runs on each host
    if kill -0 "$(cat run.pid 2>/dev/null)" 2>/dev/null; then refuse "a run is under way"; fi
    export CRYJAX_EXTRAS=${CRYJAX_EXTRAS:-tpu} CRYJAX_COORDINATOR=${CRYJAX_COORDINATOR:-auto}
    source launch/setup.sh
    rm -f run.stop
    failures=0
    while :; do
      begun=$SECONDS
      python -m "cryjax.$1" "${@:2}" &
      echo $! >run.pid
      status=0
      wait $! || status=$?
      echo "tpu_pod.sh: $1 ended with status $status"
      # When a host is preempted, all save (75) and it comes back; a mistake (2) would only be
      # repeated. After other failures the other hosts end within two minutes, and all restart.
      # They are counted anew after six hours of training.
      [ $((SECONDS - begun)) -lt 21600 ] || failures=0
      case $status in
        0 | 2) break ;;
        75) ;;
        *) failures=$((failures + 1)) ;;
      esac
      if [ -e run.stop ] || [ "$failures" -gt 5 ]; then break; fi
      sleep 30
      [ ! -e run.stop ] || break # told meanwhile
    done
    ;;
  logs) # follows one host's log, or shows the end of every one
    case ${1:-0} in
      all) on all 'hostname; tail -n 5 cryjax/run.log' ;;
      *) on "${1:-0}" 'tail -n +1 -F cryjax/run.log' ;;
    esac
    ;;
  stop) on all "touch cryjax/run.stop; pkill -TERM -F cryjax/run.pid" ;;
  delete) tpu_vm delete "$TPU" --quiet ;;
esac
