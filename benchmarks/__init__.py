"""Benchmarks of automl, each a command: `python -m benchmarks.NAME [--quick] [--json FILE]`. See docs/benchmarks.md.

Not part of the installed package. Modules here may import all of `automl`; nothing imports them but their tests.
"""
