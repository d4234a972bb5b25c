#!/bin/bash
# All benchmarks and tests for one GPU, in less than ten minutes by the limits below:
#
#     bash benchmarks/on_gpu.sh OUT [WHEELS]
#     DEVICE=cpu SIZE=tiny bash benchmarks/on_gpu.sh OUT      # shows that the script runs
#
# NOT YET RUN ON A GPU, nor from beginning to end on a CPU: its tests and its single parts have been run on a CPU.
#
# Needs Python with torch and transformers 5.15 or newer beside this source tree; nothing is installed or fetched. The
# tests also need pytest and soundfile: where they are missing, and WHEELS is a folder with their wheels, these are
# unpacked into a temporary folder; else the tests are left out, with a line that says so. Results, logs and the exit
# code of each part (124: its limit) lie in OUT. The script's own exit code is 1 where a part failed.
set -u
OUT=${1:?usage: bash benchmarks/on_gpu.sh OUT [WHEELS]}
WHEELS=${2:-}
DEVICE=${DEVICE:-cuda} SIZE=${SIZE:-small} PYTHON=${PYTHON:-python3}
ROOT=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
SITE=$(mktemp -d)
trap 'rm -rf "$SITE"' EXIT

# The package's folders under its one import name, as setup.cfg maps them.
mkdir "$SITE/whisper_mla"
for part in "$ROOT"/modeling_whisper_mla/*; do ln -s "$part" "$SITE/whisper_mla/"; done
ln -s "$ROOT/configuration" "$ROOT/conversion" "$SITE/whisper_mla/"
export PYTHONPATH="$SITE:$ROOT" HF_HUB_OFFLINE=1 WHISPER_MLA_DEVICE=$DEVICE PYTHONDONTWRITEBYTECODE=1

for module in pytest soundfile; do
  if [ -n "$WHEELS" ] && ! "$PYTHON" -c "import $module" 2>/dev/null; then
    "$PYTHON" -m pip install -q --no-index --find-links "$WHEELS" --target "$SITE" "$module" ||
      echo "$WHEELS has no wheel of $module that fits"
  fi
done

"$PYTHON" - "$DEVICE" <<'CHECK' || exit 1
import sys, torch, transformers
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("on_gpu.sh: PyTorch finds no GPU here. DEVICE=cpu SIZE=tiny runs the same on the CPU.")
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 15):
    sys.exit(f"on_gpu.sh: transformers {transformers.__version__}: 5.15 or newer is needed.")
CHECK

few=()
[ "$DEVICE" = cpu ] && few=(--batches 1 2 --lengths 8 16 --tokens 8 --rounds 1)
failed=0
part() { # part NAME SECONDS COMMAND
  local name=$1 seconds=$2 code
  shift 2
  echo "== $name (at most $seconds s)"
  timeout "$seconds" "$@" >"$OUT/$name.log" 2>&1
  code=$?
  echo "$name $code" >>"$OUT/exit_codes.txt"
  tail -n 3 "$OUT/$name.log" | cut -c1-400
  [ $code = 0 ] || failed=1
}
: >"$OUT/exit_codes.txt"
cd "$ROOT" || exit 1
if "$PYTHON" -c "import pytest, soundfile" 2>/dev/null; then
  part tests 120 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu tests/gpu
else
  echo "== tests: left out, pytest or soundfile is missing" | tee "$OUT/tests.log"
fi
part speed 150 "$PYTHON" benchmarks/on_gpu.py speed "$OUT" --device "$DEVICE" --size "$SIZE" --seconds 30 "${few[@]}"
part memory 220 "$PYTHON" benchmarks/on_gpu.py memory "$OUT" --device "$DEVICE" --size "$SIZE" --seconds 45 "${few[@]}"
part compile 100 "$PYTHON" benchmarks/on_gpu.py compile "$OUT" --device "$DEVICE" --size "$SIZE" --seconds 60 "${few[@]}"
echo "results in $OUT"
exit $failed
