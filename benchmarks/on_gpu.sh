#!/usr/bin/env bash
# Runs all checks and measurements for a GPU in one call of under 8 minutes; see "On a GPU" in benchmarks/README.md.
#
#   benchmarks/on_gpu.sh --fetch [--python 3.12]   beforehand, on a machine with a package index
#   benchmarks/on_gpu.sh [OPTION ...] [OUT]        on the machine with the GPU; --help has the options
#   benchmarks/on_gpu.sh --dry-run [OUT]           the same with tiny sizes, on a CPU
#
# PYTHON: the interpreter that has torch (default: that of the clone's .venv, or else python3).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || echo python3)}
# The working folder stays the caller's, for relative paths; a `benchmarks` in it must not hide ours.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1

if [ "${1:-}" = --fetch ]; then
    shift
    exec "$python" -m benchmarks.packages fetch "$@"
fi

export HF_HUB_OFFLINE=1  # nothing is downloaded here
export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1

# An environment that has the package is used as it is.
has_package='import sys; from importlib.util import find_spec; sys.exit(not (find_spec("falcon3_audio") and find_spec("trl")))'
if ! "$python" -c "$has_package"; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m benchmarks.packages install "$site"
    export PYTHONPATH="$site:$PYTHONPATH"
fi
"$python" -m benchmarks.on_gpu "$@"
