"""Making sets and backbones to train from; README.md says what is in them."""
