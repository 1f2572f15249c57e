"""A driver to be killed: verifies a study on two workers under Ray, as `automl verify` does.

python -m tests.verify.drive_verification DATABASE-URL STUDY CACHE SEEDS
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path

from automl.cli.study_argument import recorded_spec
from automl.storage.sql import open_database
from automl.verify.run import VerifyOptions, verify_study


def main(url: str, study: str, cache: str, seeds: str) -> None:
    logging.basicConfig(level=logging.INFO)
    with open_database(url, create=False) as database:
        spec = recorded_spec(database, study)
        spec = replace(spec, run=replace(spec.run, executor="ray", workers=2))
        verify_study(database, spec, Path(cache), VerifyOptions(seeds=int(seeds), finalists=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
