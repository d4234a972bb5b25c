#!/bin/bash
# All benchmarks and tests for one GPU, in less than ten minutes:
#
#     bash benchmarks/on_gpu.sh OUT [WHEELS]
#     DEVICE=cpu SIZE=tiny bash benchmarks/on_gpu.sh OUT      # shows that the script runs
#
# Needs Python with torch and transformers 5.15 or newer beside this source tree; nothing is fetched. The tests also need
# pytest and soundfile: where they are missing, WHEELS is a folder with their wheels and those that they need, which are
# unpacked into a temporary folder. LIMIT: seconds for all of it. In OUT lie the results (gpu.json) and what all parts
# printed (gpu.log). The exit code is 1 where a part failed or was ended.
set -u
OUT=${1:?usage: bash benchmarks/on_gpu.sh OUT [WHEELS]}
WHEELS=${2:-}
DEVICE=${DEVICE:-cuda} SIZE=${SIZE:-small} PYTHON=${PYTHON:-python3} LIMIT=${LIMIT:-560}
ROOT=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
SITE=$(mktemp -d)
trap 'rm -rf "$SITE"' EXIT
if [ -n "$WHEELS" ]; then
  "$PYTHON" -m pip install -q --no-index --no-deps --target "$SITE" "$WHEELS"/*.whl || exit 1
fi

# The package's folders under its one import name, as setup.cfg maps them.
mkdir "$SITE/whisper_mla"
for part in "$ROOT"/modeling_whisper_mla/*; do ln -s "$part" "$SITE/whisper_mla/"; done
ln -s "$ROOT/configuration" "$ROOT/conversion" "$SITE/whisper_mla/"
export PYTHONPATH="$SITE:$ROOT" HF_HUB_OFFLINE=1 WHISPER_MLA_DEVICE=$DEVICE

"$PYTHON" - <<'CHECK' || exit 1
import importlib.metadata, sys
version = importlib.metadata.version("transformers")
if tuple(map(int, version.split(".")[:2])) < (5, 15):
    sys.exit(f"on_gpu.sh: transformers {version}: 5.15 or newer is needed.")
CHECK

cd "$ROOT" && "$PYTHON" benchmarks/on_gpu.py "$OUT" --device "$DEVICE" --size "$SIZE" --seconds "$LIMIT"
