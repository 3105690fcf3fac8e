"""The commands that documents show, as the parser of the training reads them."""
import re
from pathlib import Path

CALLED = re.compile(r'^(?!#)(?:\S.*)?(?:train_timm\.py|timm-icasc train|-m timm_icasc\.cli train) (-.*)', re.M)


def training_commands(text: str) -> list[str]:
    """What stands behind the name of the training, in every line that calls it."""
    return CALLED.findall(text)


def training_options(line: str, output: Path) -> list[str]:
    """The options of a line that calls the training, without its comment, with a folder of one run as `--output`."""
    words = line.split('#')[0].split()
    run = output / (words[words.index('--experiment') + 1] if '--experiment' in words else 'run')
    run.mkdir(exist_ok=True)
    (run / 'args.yaml').write_text('dataset: digits\n')
    return [*words, '--output', str(output)]
