"""Cuts of a finished adapter: the curve of its metric over sizes, the knee, and the smaller adapter as a folder."""
