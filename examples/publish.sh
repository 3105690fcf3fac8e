#!/usr/bin/env bash
# Publish a run on the Hugging Face Hub, and get the same weights back.
#
# You learn how weights travel: `timm-icasc push` sends a run's weights (safetensors), configuration
# and card in one commit, fetches them back, compares the hashes and tags the commit;
# `timm-icasc pull` fetches and verifies them anywhere else, and leaves a folder that timm loads
# without a network.
#
#     hf auth login                                            # a token with write permission
#     timm-icasc train                                         # a run of one minute, to publish
#     bash examples/publish.sh output/resnet20_cifar-digits me/resnet20-icasc-digits
#     bash examples/publish.sh RUN OWNER/NAME [FOLDER] [OPTION ...]
#
# The repo is public unless you add --private; FOLDER (default: pulled) is where the copy goes,
# further options go to `timm-icasc push`. HF_ENDPOINT names another Hub, for a trial.
set -euo pipefail

if [ $# -lt 2 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
    case "${1:-}" in -h | --help) exit 0 ;; *) exit 2 ;; esac
fi
run=$1
repo=$2
folder=${3:-pulled}
shift $(($# < 3 ? $# : 3))

timm-icasc push "$run" "$repo" "$@"
timm-icasc pull "$repo" --to "$folder"

# What a user of the weights writes; with `hf-hub:OWNER/NAME` instead no pull is needed before.
python - "$folder" <<'PYTHON'
import sys

import timm
import timm_icasc  # registers the architectures of the package

model = timm.create_model(f'local-dir:{sys.argv[1]}', pretrained=True).eval()
values = sum(parameter.numel() for parameter in model.parameters())
print(f'loaded: {type(model).__name__}, {values:,} parameters, {model.num_classes} classes')
PYTHON
