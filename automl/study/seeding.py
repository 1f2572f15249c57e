"""Seeds that depend on what they are for, and on nothing else: the same study gives the same trials on any machine."""

from __future__ import annotations

import hashlib


def derive_seed(purpose: str, *parts: int) -> int:
    """A number in [0, 2**31), a function of the purpose and the parts alone (sha256 of their text)."""
    text = ":".join((purpose, *map(str, parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def trial_seed(study_seed: int, trial: int) -> int:
    """Seed of one trial's adapter and dropout; a resumed or repeated trial gets the same again."""
    return derive_seed("trial", study_seed, trial)


def data_seed(study_seed: int) -> int:
    """Seed of the order of the batches: one for all trials of a study, so that their comparison is paired."""
    return derive_seed("data", study_seed)


def sampler_seed(study_seed: int, run: int) -> int:
    """Seed of the sampler in one run: a sampler built again with the old seed would propose the same points again."""
    return derive_seed("sampler", study_seed, run)
