"""Write a finished run as a folder for timm: safetensors and config.json, without the Hub and without a network.

    timm-icasc export output/resnet20_cifar-digits exported
    timm-icasc eval local-dir:exported --dataset digits

DIR then holds config.json, model.safetensors and args.yaml, for timm.create_model('local-dir:DIR', pretrained=True) and
for every command that takes a model. It must be new, or empty. A kill leaves all of it or nothing.

Weights are those after the last epoch (the averaged ones, where the run kept an average), which the results are of.
With --best they are those of the best epoch, with what was measured of them then.

--onnx also writes model.onnx: normalised images of the size in config.json to logits, for any number of images. Its
logits are compared with the model's.
"""
import argparse
from pathlib import Path

from ..foreign_text import printable
from ..publish.export import export_run
from ..publish.onnx_file import ONNX


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('source', type=Path, metavar='RUN', help='a finished run')
    parser.add_argument('folder', type=Path, metavar='DIR', help='where to; new, or empty')
    parser.add_argument('--best', action='store_true', help='the weights of the best epoch, not of the last')
    parser.add_argument('--onnx', action='store_true', help="also model.onnx (pip install 'timm_icasc[onnx]')")
    parser.add_argument(
        '--license', metavar='ID', help='license of the weights, e.g. cc-by-nc-4.0 (default: that of '
        'the weights the run started from; apache-2.0 where it started from none)')
    parser.add_argument(
        '--class-names', action=argparse.BooleanOptionalAction, default=None,
        help='the names of the classes in config.json (default: where the data set is digits, a named one of this '
             'package or of torchvision; not of image folders, lists and streams)')


def run(args: argparse.Namespace) -> int:
    config = export_run(
        args.source, args.folder, args.best, args.license, args.class_names, args.onnx)
    print(printable(f"{config['architecture']}, {config['num_classes']} classes: '{args.folder}'"))
    print(f"timm.create_model({f'local-dir:{args.folder}'!r}, pretrained=True)")
    if args.onnx:
        print(printable(f"'{args.folder / ONNX}': the same scores as the model"))
    return 0
