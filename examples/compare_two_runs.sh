#!/usr/bin/env bash
# Train with cross-entropy and with ICASC, and compare.
#
# You learn the three commands of a comparison: `timm-icasc train` for each run (same seed and
# options), `timm-icasc eval --compare` for the differences with their intervals over the images,
# `timm-icasc figure` for what both attend to. The data are scikit-learn's digits, nothing is
# downloaded. Two runs of one seed show the way; a claim needs several (`timm-icasc sweep --help`).
#
#     bash examples/compare_two_runs.sh                        # 4 epochs, to output/comparison
#     bash examples/compare_two_runs.sh FOLDER EPOCHS [OPTION ...]
#
# Further options go to both runs, e.g. --model resnet32_cifar or --seed 1.
set -euo pipefail

if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
    exit
fi
folder=${1:-output/comparison}
epochs=${2:-4}
shift $(($# < 2 ? $# : 2))

for run in baseline icasc; do
    if [ -e "$folder/$run" ]; then
        echo "compare_two_runs.sh: error: $folder/$run is there already; name another folder." >&2
        exit 2
    fi
done

# Without a data set the training follows its recipe for the digits. The terms set in halfway.
common=(--epochs "$epochs" --warmup-epochs $((epochs > 1)) --output "$folder" "$@")
timm-icasc train "${common[@]}" --no-icasc --experiment baseline
timm-icasc train "${common[@]}" --icasc --experiment icasc \
    --icasc-start-epoch $((epochs / 2)) --icasc-ramp-epochs 0

# Accuracy, separability of the maps and more, with 95 % intervals; in FOLDER/eval/comparison.json
timm-icasc eval --compare "$folder/baseline" "$folder/icasc" --output "$folder/eval"

# The highest-scoring classes' maps of the same images, above the baseline's, below those of ICASC
timm-icasc figure classes "$folder/baseline" "$folder/icasc" --output "$folder/classes.png"
echo "figure: $folder/classes.png"
