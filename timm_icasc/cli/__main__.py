"""`python -m timm_icasc.cli`: the command where no script is installed."""
import signal
import sys

from . import main

if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
