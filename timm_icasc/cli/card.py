"""The card of a model.

hub_cards/NAME.yaml (what people write), NAME.json (results, written by evaluation alone), the shipped folder NAME/ with
config.json and weights, and card.md.j2 make NAME/README.md.

    timm-icasc card hub_cards/*.yaml              render the cards again
    timm-icasc card hub_cards/*.yaml --check      exit with 1 where a card differs from its sources
    timm-icasc card hub_cards/NAME.yaml --runs output/RUN ...
                                                  evaluate these runs first, and export the weights that the YAML ships;
                                                  several YAMLs: of the same runs, as those of a network and its twin
"""
import argparse
from pathlib import Path

from ..errors import HubError
from ..foreign_text import printable
from ..hub.model_folder import README
from ..publish.card import render_sources
from ..publish.card_results import write_results
from ..runs.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('cards', nargs='+', type=Path, metavar='YAML', help='hub_cards/NAME.yaml')
    parser.add_argument('--check', action='store_true', help='write nothing; exit with 1 where a card is out of date')
    parser.add_argument(
        '--runs', nargs='+', type=Path, metavar='DIR',
        help='run directories of the training: evaluate them into NAME.json, and export the weights '
             'of the run that the YAML names (shipped_run) into NAME/')


def run(args: argparse.Namespace) -> int:
    if args.runs and args.check:
        raise HubError('`runs` makes a card anew, and `check` holds one against its sources: give one of the two.')
    if args.runs:
        write_results(args.cards, args.runs)
    outdated = []
    for path in args.cards:
        text, target = render_sources(path), path.with_suffix('') / README
        if args.check:
            if not target.is_file() or target.read_text(encoding='utf-8') != text:
                outdated.append(str(target))
        else:
            write_text(target, text)
            print(printable(target))
    for name in map(printable, outdated):
        print(f'{name} differs from its sources; render it: timm-icasc card {Path(name).parent}.yaml')
    return 1 if outdated else 0
