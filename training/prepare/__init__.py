"""Prepares data sets and backbones for training; README.md says what is in them."""
