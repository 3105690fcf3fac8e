"""Publish a finished run, or a folder of hub_cards/, on the Hugging Face Hub.

    timm-icasc push output/resnet20_cifar-digits me/resnet20-icasc-digits
    timm-icasc push hub_cards/resnet20_cifar.icasc_digits me/resnet20-icasc-digits

safetensors, config.json and the card go up in one commit, are fetched back into a fresh cache, compared, and tagged
`verified-...`. Weights are those after the last epoch (the averaged ones, where the run kept an average), which the
results are of; with --best those of the best epoch, and so are the figures of the card. Run it again after an
interruption: what has arrived is not sent twice. Log in with `hf auth login`.

Published are config.json (with the names of data set and of initial weights), model.safetensors, args.yaml and the card
README.md. attention.png shows six of your validation images. It goes along, and onto the card, where the data set is a
public one, else only with --figure; likewise the names of the classes, with --class-names. Of local paths in commands
and options the last part stays. Nothing else in the folder is taken, and no link is followed.

--space also writes the page of `timm-icasc demo` as a Space beside the model: whoever opens it can upload an image.

Beside a folder of hub_cards/ it writes NAME.hub.json: the commit at which the weight tag NAME finds its weights.
"""
import argparse
from pathlib import Path

from ..hub.upload import repo_name
from ..publish.push import push, report
from ..publish.space import push_space


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('source', type=Path, metavar='DIR', help='a finished run, or an exported folder')
    parser.add_argument('repo_id', metavar='OWNER/NAME', help='the repo; it is created where it does not exist')
    parser.add_argument(
        '--license', metavar='ID', help='license of the weights, e.g. cc-by-nc-4.0 (default: that of '
        'the weights the run started from; apache-2.0 where it started from none)')
    parser.add_argument('--best', action='store_true', help='the weights of the best epoch, not of the last')
    parser.add_argument('--private', action='store_true', help='create the repo as a private one')
    parser.add_argument(
        '--figure', action=argparse.BooleanOptionalAction, default=None,
        help='publish attention.png, which shows validation images of yours (default: where the data set is digits, a '
             'named one of this package or of torchvision; not of image folders, lists and streams)')
    parser.add_argument(
        '--class-names', action=argparse.BooleanOptionalAction, default=None,
        help='publish the names of the classes in config.json (default: as for --figure)')
    parser.add_argument(
        '--space', nargs='?', const='', metavar='OWNER/NAME',
        help="also publish a page to try the model, as a Space (default name: the model's)")


def run(args: argparse.Namespace) -> int:
    space = repo_name(args.space) if args.space else args.space  # before anything is published
    published = push(
        args.source, args.repo_id, args.license, private=args.private, figure=args.figure,
        class_names=args.class_names, best=args.best)
    report(published)
    if space is not None:
        print(push_space(published, space, args.license, args.private))
    return 0
