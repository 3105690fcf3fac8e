#!/usr/bin/env python3
"""How long do the commands take to start? A table: processor and wall time of the fastest of seven starts each.

    starts.py
"""
import resource
import subprocess
import sys
import time

ROUNDS = 7
COMMAND = [sys.executable, '-m', 'timm_icasc_cli']
COMMANDS = {
    'timm-icasc --version': [*COMMAND, '--version'],
    'timm-icasc --help': [*COMMAND, '--help'],
    'python -c "import torch, timm"': [sys.executable, '-c', 'import torch, timm'],
    'python -c "import timm_icasc"': [sys.executable, '-c', 'import timm_icasc'],
    'timm-icasc layers resnet50': [*COMMAND, 'layers', 'resnet50'],
}


def seconds(command: list[str]) -> tuple[float, float]:
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main():
    taken = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            taken[name].append(seconds(command))
    print('| command | processor time, s | wall time, s |\n|---|---|---|')
    for name, values in taken.items():
        fastest = [f'{min(column):.2f}' for column in zip(*values, strict=True)]
        print(f'| `{name}` | ' + ' | '.join(fastest) + ' |')


if __name__ == '__main__':
    main()
