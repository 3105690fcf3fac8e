"""The commands that documents show, as the parser of the training reads them."""
import re

CALLED = re.compile(r'^(?!#)(?:\S.*)?(?:train_timm\.py|timm-icasc train|-m timm_icasc\.cli train) (-.*)', re.M)


def training_commands(text: str) -> list[str]:
    """What stands behind the name of the training, in every line that calls it."""
    return CALLED.findall(text)


def training_options(line: str) -> list[str]:
    """The options of a line that calls the training, without its comment."""
    given = line.split('#')[0].split()
    if '--resume' in given:  # which would look for a run; the readers have one
        given += ['--data-dir', 'data']
    return given
