"""From a finished run to a model on the Hub: the exported folder and its card."""
