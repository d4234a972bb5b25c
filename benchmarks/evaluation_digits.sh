#!/usr/bin/env bash
# Word error rates of whisper-digits on its development set: stock, converted exactly, and with two ranks.
# Usage, from the repository: benchmarks/evaluation_digits.sh DATA      (DATA/dev is an audio folder; a minute or two on a CPU)
set -euo pipefail
results=$PWD/benchmarks/results digits=$PWD/modeling_whisper_mla/assets/whisper-digits data=$(realpath "$1")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
# Links, so that the command in the result files names no path of this machine.
ln -s "$digits" whisper-digits
ln -s "$data" data
whisper-mla convert whisper-digits digits-exact --dtype float32
whisper-mla convert whisper-digits digits-kv64-cross64 --kv-rank 64 --cross-kv-rank 64 --dtype float32
whisper-mla evaluate whisper-digits digits-exact digits-kv64-cross64 --dataset data/dev --language en \
    --output out --name evaluation_digits
cp out/evaluation_digits.{json,md,png} "$results"
