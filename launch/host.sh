#!/usr/bin/env bash
# Runs on a TPU host, in the checkout that launch/tpu.py copied there (see docs/tpu.md):
#   host.sh setup              creates .venv for a TPU, the Hub and trackers; HOST_PYTHON names a Python of 3.11 or newer
#   host.sh start VERB ...     tubevit VERB ... in the background, restarted depending on its exit code
#   host.sh run VERB ...       setup, then the same in the foreground (in a container)
#   host.sh status             prints `status: ` followed by none, running, or the exit code of the run
set -euo pipefail
cd "$(dirname "$0")/.."
state=runs/launch

python() {
  local candidate
  for candidate in ${HOST_PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  # The images for v4 to v6e are Ubuntu 22.04 with Python 3.10. uv needs neither root nor apt, which is locked during boot.
  python3 -m pip install --user --quiet uv >&2
  python3 -m uv python install --quiet 3.12 >&2
  UV_PYTHON_PREFERENCE=only-managed python3 -m uv python find --system 3.12
}

setup() {
  command -v make >/dev/null || sudo apt-get -o DPkg::Lock::Timeout=600 install -y make
  make --no-print-directory setup EXTRAS=tpu,hub,wandb,mlflow PYTHON="$(python)"
}

running() {
  [ -e $state/pid ] && grep -qa restart.py "/proc/$(cat $state/pid)/cmdline" 2>/dev/null
}

verb=${1:-}
case $verb in
setup)
  setup
  ;;
run)
  setup
  exec .venv/bin/python launch/restart.py -- .venv/bin/tubevit "${@:2}"
  ;;
start)
  if running; then
    echo "host.sh: a run is already in progress" >&2
    exit 2
  fi
  mkdir -p $state
  rm -f $state/exit
  nohup setsid .venv/bin/python launch/restart.py --exit-file $state/exit -- .venv/bin/tubevit "${@:2}" \
    >>$state/log 2>&1 </dev/null &
  echo $! >$state/pid
  ;;
status)
  # Looked for again: the run may have ended after the first look.
  code=$(cat $state/exit 2>/dev/null || (running && echo running) || cat $state/exit 2>/dev/null || echo none)
  echo "status: $code"
  ;;
*)
  echo "host.sh: expected setup, run, start or status; found '$verb'" >&2
  exit 2
  ;;
esac
