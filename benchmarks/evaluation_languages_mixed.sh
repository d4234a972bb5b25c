#!/usr/bin/env bash
# Word error rates of a multilingual checkpoint by language: stock, and with latents of mixed bits that were chosen on the
# English speech of the package, at 3.5 bits per value. Usage, from the repository:
# benchmarks/evaluation_languages_mixed.sh MODEL DATA NAME
# DATA is an audio folder whose metadata has a column "language"; the results are benchmarks/results/NAME.*
set -euo pipefail
results=$PWD/benchmarks/results model=$(realpath "$1") data=$(realpath "$2") name=$3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
# Links, so that the command in the result files names no path of this machine.
ln -s "$model" "${model##*/}"
ln -s "$data" "${data##*/}"
whisper-mla convert "${model##*/}" mixed --latent-dtype mixed --dtype float32
whisper-mla evaluate "${model##*/}" mixed --dataset "${data##*/}" --temperatures 0 --output out --name "$name"
cp out/"$name".{json,md,png} "$results"
