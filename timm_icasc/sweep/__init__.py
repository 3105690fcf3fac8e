"""Studies: variants x seeds of timm-icasc train, their records, and the page that says what follows from them."""
