"""Pruners, one file each: its options and how it is built. `automl.space.entries` lists them."""
