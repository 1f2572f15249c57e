"""Backbones and their linear layers: where a model comes from, and what a target set means in it."""
