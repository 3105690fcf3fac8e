"""From a study's YAML file to the runs of timm-icasc train; everything is checked before anything runs."""
import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ICASCError
from ..evaluation.options import evaluation_parser
from ..foreign_files import read_yaml
from ..runs.folder import BEST, COMPUTING, LAST
from ..training.argument_files import check_options, find_config, load_config
from ..training.arguments import build_parser, parse_args, to_arguments
from ..training.dependent_options import still_meant

__all__ = ['PlannedRun', 'Study', 'changed_options', 'load_study', 'measured_by', 'settled_options']

KEYS = ('baseline', 'seeds', 'common', 'variants', 'evaluate', 'records', 'report')

# Options of timm-icasc train and of timm-icasc eval that are the sweep's own affair.
RESERVED = ('seed', 'output', 'experiment', 'resume', 'push_to_hub', 'icasc_compare')

RESERVED_EVALUATION = ('checkpoints', 'compare', 'output', 'robustness')

MACHINE = (*RESERVED, *COMPUTING, 'config', 'run_dir')  # do not change the result of a run

MACHINE_OF_EVALUATION = ('workers', 'device', 'batch_size', 'max_image_pixels')


@dataclass(frozen=True)
class PlannedRun:
    """One run of timm-icasc train: a variant with a seed.

    Attributes:
        options: All options of timm-icasc train that decide its result, the seed aside.
        arguments: Its command line, without where its files go.
    """
    variant: str
    seed: int
    options: dict[str, Any]
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        return f'{self.variant}-seed{self.seed}'

    @property
    def data_dir(self) -> str | None:
        """Folder of the images on this machine."""
        words = dict(zip(self.arguments, self.arguments[1:], strict=False))
        return words.get('--data-dir')


@dataclass(frozen=True)
class Study:
    """What a YAML file asks for; `runs` go through all variants with the first seed, then with the next one."""
    file: Path
    baseline: str
    variants: list[str]
    seeds: list[int]
    runs: list[PlannedRun]
    evaluation: tuple[str, ...]
    records: Path
    report: Path | None

    @property
    def name(self) -> str:
        return self.file.stem

    def part(self, number: int, count: int) -> list[PlannedRun]:
        """Runs of part `number`, from 1, of `count` parts: neighbours, so that most pairs of a seed stay together.

        Each run is in one part, whatever is done already. Parts differ by one run at most; some have none where there
        are more parts than runs.
        """
        first, end = (len(self.runs) * n // count for n in (number - 1, number))
        return self.runs[first:end]


def _read(file: Path) -> dict[str, Any]:
    try:
        content = read_yaml(file)
    except OSError as e:
        raise ICASCError(f"cannot read the study '{file}': {e.strerror}.") from e
    if not isinstance(content, dict):
        raise ICASCError(f"'{file}' is no study: it needs the keys variants, baseline and seeds.")
    if unknown := set(content) - set(KEYS):
        raise ICASCError(f"'{file}' has the unknown key '{min(map(str, unknown))}'; a study has {', '.join(KEYS)}.")
    return content


def _mapping(content: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise ICASCError(f"{where}: '{key}' must hold 'name: value' lines, got {value!r}.")
    return value


def _path(content: dict[str, Any], key: str, where: str) -> str | None:
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise ICASCError(f"{where}: '{key}' must be one path, got {value!r}.")
    return value


def _file_name(path: str | None) -> str | None:
    """A file that each machine has in a folder of its own; of a run's checkpoint only the whole path tells which."""
    name = Path(str(path or '')).name  # a record may be damaged
    return path if name in ('', LAST, BEST) else name


def settled_options(args: dict[str, Any]) -> dict[str, Any]:
    """Of all options of timm-icasc train those that decide the result of a run."""
    return {
        name: _file_name(value) if name == 'pretrained_path' else value
        for name, value in args.items() if name not in MACHINE}


def _as_recorded(options: dict[str, Any]) -> dict[str, Any]:
    """As a record holds them: JSON has lists for tuples."""
    return json.loads(json.dumps(options, default=str))


def measured_by(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The options of timm-icasc eval that decide its numbers, of a command line; and what no option is."""
    given, unknown = evaluation_parser().parse_known_args(words)
    return {k: v for k, v in vars(given).items() if k not in MACHINE_OF_EVALUATION}, unknown


def changed_options(options: dict[str, Any], earlier: dict[str, Any]) -> list[str]:
    """Names of the options that differ from those of a record or a run; what these do not tell counts as unchanged."""
    own, earlier = _as_recorded(options), _as_recorded(settled_options(earlier))
    return sorted(name for name in own if name in earlier and own[name] != earlier[name])


def _without(given: dict[str, Any], reserved: tuple[str, ...], where: str) -> dict[str, Any]:
    own = {str(key).replace('-', '_'): value for key, value in given.items()}
    if found := sorted(set(own) & set(reserved)):
        raise ICASCError(f"{where}: '{found[0]}' is not for a study to set; the sweep sets it for each run.")
    return own


def _options(
        given: dict[str, Any],
        parser: argparse.ArgumentParser,
        folder: Path,
        where: str,
) -> dict[str, Any]:
    """Options of one mapping of the study, those of its 'config', a run's args.yaml too, before its own."""
    own = _without(given, RESERVED, where)
    recipe = _path(own, 'config', where)
    own.pop('config', None)
    found = load_config(find_config(recipe, folder), parser) if recipe else {}
    options = {name: value for name, value in found.items() if name not in RESERVED}
    own = check_options(own, parser, where)
    return {**still_meant(options, own), **own}


def _with_seed(options: dict[str, Any], seed: int) -> dict[str, Any]:
    """Options in which each run has its own path, such as the network of the same seed that it goes on from."""
    return {
        name: value.replace('{seed}', str(seed)) if isinstance(value, str) else value
        for name, value in options.items()}


def _list_of_runs(
        content: dict[str, Any],
        seeds: list[int],
        folder: Path,
        where: str,
        data_dir: str | None,
) -> list[PlannedRun]:
    parser, variants = build_parser(), _mapping(content, 'variants', where)
    common = _options(_mapping(content, 'common', where), parser, folder, f'{where}, common')
    by_variant = {}
    for name in variants:
        if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9._-]*', str(name)):
            raise ICASCError(f"{where}: variant '{name}': a name has letters, digits, '.', '_' and '-' only.")
        here = f"{where}, variant '{name}'"
        own = _options(_mapping(variants, name, where), parser, folder, here)
        options = {**still_meant(common, own), **own}
        if data_dir:
            options['data_dir'] = data_dir
        arguments = [to_arguments(_with_seed(options, seed), parser) for seed in seeds]
        try:
            settled = [settled_options(vars(parse_args(words))) for words in arguments]
        except ICASCError as e:
            raise ICASCError(f'{here}: {e}') from e
        same = next((other for other, (o, _) in by_variant.items() if o == settled), None)
        if same is not None:
            raise ICASCError(
                f"{here} has the same options as variant '{same}', but for where and on what it runs: leave one of "
                f'them out (two data sets are two studies).')
        by_variant[str(name)] = settled, arguments
    return [
        PlannedRun(name, seed, settled[i], (*arguments[i], '--seed', str(seed)))
        for i, seed in enumerate(seeds) for name, (settled, arguments) in by_variant.items()]


def load_study(
        file: Path,
        data_dir: str | None = None,
        records: Path | None = None,
        baseline: str | None = None,
) -> Study:
    """Read and check a study.

    Args:
        file: The YAML file; its paths are relative to its folder, but for those in `common`, which are the trainer's.
        data_dir: Folder of the data set on this machine, instead of the file's.
        records: Folder of the records, instead of the file's.
        baseline: Variant that the others are compared with, instead of the file's.

    Raises:
        ICASCError: The file, a name in it or an option of a variant is at fault.
    """
    content, folder, where = _read(file), file.parent, f"'{file}'"
    variants = _mapping(content, 'variants', where)
    if not variants:
        raise ICASCError(f"{where} has no variants: name them below 'variants', each with options of timm-icasc train.")
    names = [str(name) for name in variants]
    baseline = str(content.get('baseline', '')) if baseline is None else baseline
    if baseline not in names:
        raise ICASCError(f"{where}: the baseline '{baseline}' is not among the variants: {', '.join(names)}.")
    seeds = content.get('seeds')
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise ICASCError(f"{where}: 'seeds' must be a list of different whole numbers, got {seeds!r}.")
    evaluation = evaluation_parser()
    here = f'{where}, evaluate'
    options = check_options(_without(_mapping(content, 'evaluate', where), RESERVED_EVALUATION, here), evaluation, here)
    runs = _list_of_runs(content, seeds, folder, where, data_dir)
    if len(splits := {run.options['val_split'] for run in runs}) > 1:
        raise ICASCError(
            f"{where}: 'val_split' must be the same for all runs, to compare them; "
            f"it is {' and '.join(sorted(splits))}.")
    report, own_records = _path(content, 'report', where), _path(content, 'records', where)
    return Study(
        file=file, baseline=baseline, variants=names, seeds=seeds, runs=runs,
        evaluation=tuple(to_arguments(options, evaluation)),
        records=records or folder / (own_records or f'records/{file.stem}'),
        report=folder / report if report else None)
