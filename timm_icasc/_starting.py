"""Ctrl-C while `python -m timm_icasc.cli` loads torch ends it without a traceback, as that of the installed command."""
import signal
import sys

# Python imports this package before `cli/__main__.py`, which takes the handler back.
if sys.argv[:1] == ['-m'] and 'timm_icasc.cli' in sys.orig_argv:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
