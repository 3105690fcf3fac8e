#!/usr/bin/env python3
"""Train a timm model with ICASC, or with the classification loss alone, or both side by side: `timm-icasc train`."""
import signal
import sys

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the imports load, which takes seconds: end without a traceback

from timm_icasc import cli


def main() -> int:
    return cli.main(['train', *sys.argv[1:]], prog='train_timm.py')


if __name__ == '__main__':
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # a second Ctrl-C, or one while starting
        sys.exit(130)
