#!/usr/bin/env bash
# Checks and measures this package on a GPU: tools/gpu_check.sh OUT [options of tools/gpu_check.py].
# Needs python with torch 2.11, torchaudio and accelerate. What else is missing is installed from the
# folder of wheels $WHEELS (no network), into OUT/site.
set -euo pipefail
out=${1:-}
if [[ -z $out || $out == -* ]]; then
  echo "usage: tools/gpu_check.sh OUT [--tiny] [--device cpu] [--text FILE] [--minutes M]; OUT is a folder" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install -q --no-index --no-deps --upgrade --target "$out/site" "$WHEELS"/*.whl
fi
export PYTHONPATH="$here:$out/site${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" "$here/tools/gpu_check.py" "$out" "${@:2}"
