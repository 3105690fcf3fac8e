"""Run what four new users type, and put it into docs/journeys.md with what is printed and the seconds that it takes.

    python docs/evidence/journeys.py --images caltech101 --weights efficientnet-lite0.pth
    python docs/evidence/journeys.py --only digits loop

Every command runs as it stands, in an empty folder, without a network: `push` speaks to the Hub of the tests, on this
machine. Needed besides the package: `accelerate`, `gradio`.
"""
import argparse
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

from timm_icasc.runs.files import replacing
from timm_icasc.runs.tables import replace_between

ROOT = Path(__file__).parents[2]
PAGE = ROOT / 'docs' / 'journeys.md'
CLASSES = ('butterfly', 'dolphin', 'lotus', 'pagoda', 'sunflower')
LINES, COLUMNS = 14, 150  # of a command's output that are shown

JOURNEYS = {
    'digits': (
        'timm-icasc train --epochs 3 --experiment first',
        'timm-icasc eval output/first',
        'timm-icasc figure classes output/first',
    ),
    'folder': (
        'timm-icasc train -c finetune --data-dir mine --image-endings .webp --model tf_efficientnet_lite0 --pretrained '
        '--pretrained-path lite0.pth --img-size 128 --epochs 3 --experiment mine',
        'timm-icasc explain photos --model output/mine',
    ),
    'loop': (
        'python examples/own_loop.py --epochs 2',
        'python examples/maps_in_a_loss.py --epochs 2',
        'python examples/accelerate_loop.py --epochs 2 --until 1',
        'python examples/accelerate_loop.py --epochs 2 --resume',
    ),
    'share': (
        'timm-icasc export output/first shared',
        'timm-icasc eval local-dir:shared --dataset digits',
        'timm-icasc push output/first me/digits --license apache-2.0',
        'timm-icasc pull me/digits --to pulled',
        'timm-icasc demo local-dir:pulled',
    ),
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--images', type=Path, metavar='DIR', help='Caltech-101, as train/CLASS and test/CLASS')
parser.add_argument('--weights', type=Path, metavar='FILE', help='ImageNet weights of tf_efficientnet_lite0')
parser.add_argument('--only', nargs='+', choices=JOURNEYS, default=list(JOURNEYS), help='these journeys, in one folder')


@dataclass
class Step:
    """A command with what it printed; seconds of the clock, and of the processor."""
    command: str
    output: str
    code: int
    seconds: float
    processor: float


def essential(text: str, folder: Path) -> str:
    """The lines that a reader needs: of a progress bar its end, no paths of this machine, the middle left out."""
    text = text.replace(f'{folder}/', '').replace(str(folder), '.').replace(str(ROOT), 'CHECKOUT')
    lines = [line.rsplit('\r', 1)[-1].rstrip()[:COLUMNS] for line in text.rstrip().split('\n')]
    if len(lines) > LINES:
        lines[5:len(lines) - LINES + 6] = [f'... {len(lines) - LINES + 1} lines']
    return '\n'.join(lines)


def serve_until_ready(process: subprocess.Popen) -> str:
    """What a server prints until it names its address; then it is ended."""
    shown = ''
    for line in process.stdout:
        shown += line.decode()
        if b'http://' in line:
            os.killpg(process.pid, signal.SIGTERM)  # Ctrl-C's signal may be ignored, as in a background job
            break
    process.communicate()
    return shown


def run(command: str, folder: Path, environment: dict[str, str]) -> Step:
    """Run it in a shell, as typed."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(
        ['bash', '-c', command], cwd=folder, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True)
    is_server = command.startswith('timm-icasc demo')
    output = serve_until_ready(process) if is_server else process.communicate()[0].decode()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    code = 0 if is_server and 'http://' in output else process.returncode
    return Step(command, essential(output, folder), code, time.monotonic() - start, used)


def as_markdown(steps: list[Step]) -> str:
    """Each command, what it printed and its seconds."""
    parts = []
    for step in steps:
        command = re.sub(r' (?=--)', ' \\\n    ', step.command) if len(step.command) > 100 else step.command
        ended = '' if not step.code else f', exit code {step.code}'
        parts.append(
            f'```console\n$ {command}\n{step.output}\n```\n\n'
            f'{step.seconds:.0f} s, {step.processor:.0f} s of them on a processor{ended}.')
    return '\n\n'.join(parts)


def prepare(folder: Path, images: Path | None, weights: Path | None) -> None:
    """What the commands find: the examples, two photographs, a folder of images, weights."""
    (folder / 'examples').symlink_to(ROOT / 'examples')
    for path, pixels in zip(load_sample_images().filenames, load_sample_images().images, strict=True):
        with replacing(folder / 'photos' / Path(path).name) as temporary:
            Image.fromarray(pixels).save(temporary, 'JPEG')
    if images:
        for split, source, count in (('train', 'train', 15), ('val', 'test', 6)):
            for name in CLASSES:
                (folder / 'mine' / split / name).mkdir(parents=True)
                for file in sorted((images / source / name).iterdir())[:count]:
                    (folder / 'mine' / split / name / file.name).symlink_to(file.resolve())
    if weights:
        (folder / 'lite0.pth').symlink_to(weights.resolve())


def main() -> None:
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / 'tests'))
    from helpers.hub_client import clean_environment
    from helpers.hub_server import Hub
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as other, Hub(Path(other)) as hub:
        folder = Path(name)
        prepare(folder, args.images, args.weights)
        environment = clean_environment(
            PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}', HF_ENDPOINT=hub.endpoint,
            HF_HOME=f'{other}/home', HF_TOKEN='hf_owner', GRADIO_ANALYTICS_ENABLED='False', PYTHONUNBUFFERED='1')
        for journey in args.only:
            steps = []
            for command in JOURNEYS[journey]:
                steps.append(run(command, folder, environment))
                print(f'{steps[-1]}\n', flush=True)
            replace_between(PAGE, journey, as_markdown(steps).replace(hub.endpoint, 'https://HUB'))


if __name__ == '__main__':
    main()
