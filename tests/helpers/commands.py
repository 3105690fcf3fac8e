"""The commands that documents show, as the parser of train_timm.py reads them."""


def training_options(line: str) -> list[str]:
    """The options of a line that calls train_timm.py, without its comment."""
    given = line.split('#')[0].split()
    if '--resume' in given:  # which would look for a run; the readers have one
        given += ['--data-dir', 'data']
    return given
