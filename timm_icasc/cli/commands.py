"""The commands, and the parser that tells them apart: of Python's own modules alone, so that --help is there at once.

`timm_icasc_cli.py` runs this file without importing the package, which would load torch and timm.
"""
import argparse

__all__ = ['COMMANDS', 'NEED_TRAINING', 'build_parser']

# Each command is the module of its name. It has `add_arguments(parser)`, whose parser already carries the description
# (the module's docstring), and `run(args)`, which returns the exit code; `Parser`, where it needs
# another than argparse's. Only the command at hand is imported.
COMMANDS = {
    'train': 'train a timm model with ICASC, or with the classification loss alone',
    'layers': 'which two layers ICASC looks at, and whether it trains, for any architecture',
    'eval': 'measure trained checkpoints, or two against each other',
    'figure': 'what trained checkpoints attend to: class maps, layers, KS chart, a page to browse',
    'explain': 'what a model sees in your images: predictions, overlays, maps, a page',
    'demo': 'the same in your browser: drop an image, one model or two side by side',
    'segment': 'attention as weak cues for semantic segmentation (Table 2)',
    'paper': 'finished runs beside the figures of the paper, mean and deviation over seeds',
    'sweep': 'a study: variants x seeds, their records and what follows from them',
    'bench': 'what a training step with ICASC costs on this machine',
    'card': 'the cards of hub_cards/: evaluate, render, check',
    'export': 'write a finished run as a folder that timm loads, or as ONNX',
    'push': 'publish a finished run on the Hugging Face Hub',
    'pull': 'fetch weights from the Hub and verify them',
    'doctor': 'whether everything here is in order: versions, devices, packages, Hub, a step of ICASC',
}

# The training, and those that set up data, model and task as it does: they ask for as recent a timm.
NEED_TRAINING = ('train', 'eval', 'figure', 'explain', 'demo', 'segment', 'sweep', 'bench', 'card', 'export', 'push')


def build_parser(version: str) -> argparse.ArgumentParser:
    """The parser of the command line up to the command's own arguments.

    Args:
        version: Of this package.
    """
    parser = argparse.ArgumentParser(
        prog='timm-icasc', description='ICASC for timm models.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='commands:\n' + '\n'.join(f'  {name:<8} {text}' for name, text in COMMANDS.items())
        + '\n\ntimm-icasc COMMAND --help explains one.')
    parser.add_argument('--version', action='version', version=f'timm-icasc {version}')
    parser.add_argument('command', choices=list(COMMANDS), metavar='COMMAND')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, metavar='...')
    return parser
