"""Which of timm's architectures work: the record and its page."""
