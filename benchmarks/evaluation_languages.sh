#!/usr/bin/env bash
# Word error rates of a multilingual checkpoint by language: stock, converted exactly, and with rounded latents, which
# takes no audio to convert. Usage, from the repository: benchmarks/evaluation_languages.sh MODEL DATA NAME
# DATA is an audio folder whose metadata has a column "language"; the results are benchmarks/results/NAME.*
set -euo pipefail
results=$PWD/benchmarks/results model=$(realpath "$1") data=$(realpath "$2") name=$3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
# Links, so that the command in the result files names no path of this machine.
ln -s "$model" "${model##*/}"
ln -s "$data" "${data##*/}"
whisper-mla convert "${model##*/}" exact --dtype float32
whisper-mla convert "${model##*/}" int8 --latent-dtype int8 --method joint_svd --dtype float32
whisper-mla convert "${model##*/}" int4 --latent-dtype int4 --method joint_svd --dtype float32
whisper-mla evaluate "${model##*/}" exact int8 int4 --dataset "${data##*/}" --temperatures 0 --output out --name "$name"
cp out/"$name".{json,md,png} "$results"
