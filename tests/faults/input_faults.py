"""Bad space files, unwritable folders, leaking drivers, secrets (R-10, R-13, R-16, R-21, R-29)."""

from __future__ import annotations

import base64
import math
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import psutil

from automl.errors import ConfigError
from automl.space.load import parse_space
from automl.space.spec import SearchSettings
from tests.faults.driver_faults import postgres
from tests.faults.kill import ROOT
from tests.faults.scenario import Findings, SkipScenario, Trial

_SLOWEST_PARSE = 2.0
_TOKENS = (
    *("1e-4", ".nan", ".inf", "-1", "0", "999999999999999999999999", "010", "yes", "null", "[", "]", "{", "}", "&a"),
    *("*a", "<<", "ü", "'", '"', "|", ">", "%", "---", "#", "1_000", "0x10", ": ", "- ", "\t", "\x00", "\ufeff"),
    *("!!python/object:os.system", "../../etc/passwd", "/dev/zero", "http://x/y", "rank", "target", "{a: [" * 40),
)


def fuzzed_spaces(trial: Trial) -> Findings:
    """R-16: presets with bytes, tokens and lines changed; each is refused with all problems, or means something."""
    findings = Findings()
    presets = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "search_spaces").glob("*.yaml"))]
    for _ in range(trial.size):
        text = _mutated(trial.chance.choice(presets), trial.chance)
        began = time.monotonic()
        try:
            parse_space(text, "fuzzed.yaml", ROOT / "search_spaces")
            outcome = "accepted"
        except ConfigError as error:
            outcome = "refused"
            findings.expect("fuzzed.yaml" in str(error), f"no place named: {str(error)[:200]!r}")
        except Exception as error:  # noqa: BLE001 - any other error is what is looked for
            outcome = "crashed"
            findings.violations.append(f"{type(error).__name__}: {error}: {text!r}")
        seconds = time.monotonic() - began
        findings.worst("slowest_seconds", seconds)
        findings.expect(seconds < _SLOWEST_PARSE, f"took {seconds:.1f} s: {text!r}")
        findings.details[outcome] = findings.details.get(outcome, 0) + 1
        findings.count += 1
    return findings


def _mutated(text: str, chance: random.Random) -> str:
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(text))
        lines = text.splitlines(keepends=True)
        line = chance.randrange(len(lines))
        kind = chance.randrange(6)
        if kind == 0:
            text = text[:place] + chance.choice(_TOKENS) + text[place:]
        elif kind == 1:
            text = text[:place] + text[place + chance.randint(1, 20) :]
        elif kind == 2:
            text = "".join([*lines[:line], *lines[line + 1 :]])
        elif kind == 3:
            text = "".join([*lines[: line + 1], *lines[line:]])
        elif kind == 4:
            text = text[:place] + chr(chance.randrange(0x250)) + text[place + 1 :]
        else:
            words = lines[line].split(" ")
            words[chance.randrange(len(words))] = chance.choice(_TOKENS)
            text = "".join([*lines[:line], " ".join(words).rstrip("\n") + "\n", *lines[line + 1 :]])
        text = text or "x"
    return text


def read_only_places(trial: Trial) -> Findings:
    """R-10: folders and files that cannot be written: a clear end within seconds, before any trial."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        raise SkipScenario("needs root, to become a user without rights")
    findings = Findings()
    with trial.workspace() as folder:
        folder.chmod(0o755)
        for parent in folder.parents:
            if not parent.stat().st_mode & 0o005:
                parent.chmod(parent.stat().st_mode | 0o055)
        locked = folder / "locked"
        locked.mkdir(mode=0o755)
        (locked / "there.db").write_bytes(b"")
        for arguments in (
            ["db", "init", "--db", f"sqlite:///{locked}/new.db"],
            ["db", "status", "--db", f"sqlite:///{locked}/there.db"],
            ["db", "init", "--db", f"sqlite:///{locked}/there.db"],
            ["db", "backup", str(locked), "--db", f"sqlite:///{locked}/there.db"],
            ["db", "init", "--db", f"sqlite:///{folder}/missing/new.db"],
            ["db", "restore", f"{locked}/there.db", "--db", f"sqlite:///{locked}/new.db"],
        ):
            done = _automl(arguments, as_nobody=True)
            text = done.stdout + done.stderr
            findings.expect(done.returncode in (2, 3, 5), f"{arguments}: ended with {done.returncode}: {text[-300:]}")
            findings.expect("Traceback" not in text, f"{arguments}: {text[-500:]}")
            findings.expect(str(folder) in text, f"{arguments}: does not name the place: {text[-300:]}")
            findings.count += 1
    return findings


def secrets(trial: Trial) -> Findings:
    """R-29: a password in the database's URL, seen in no output, argument, file or table of any command."""
    findings = Findings()
    canary = "Canary/" + trial.chance.randbytes(6).hex() + "@%"
    quoted = quote(canary, safe="")
    with postgres() as server, trial.workspace() as folder:
        server.execute(f"CREATE ROLE canary LOGIN SUPERUSER PASSWORD '{canary}'")
        server.execute(f"CREATE DATABASE secrets TEMPLATE {server.template()}")
        good = server.url("secrets").replace("postgres:", "canary:", 1)
        user, rest = good.split("canary:", 1)
        good = f"{user}canary:{quoted}@{rest.split('@', 1)[1]}"
        separator = "&" if "?" in good else "?"
        addresses = {
            "good": good,
            "in the query": f"{good.replace(f':{quoted}@', '@')}{separator}password={quote_plus(canary)}",
            "no such database": good.replace("/secrets", "/nowhere"),
            "no such server": f"postgresql://canary:{quoted}@127.0.0.1:1/x",
            "no such host": f"postgresql://canary:{quoted}@host.invalid/x",
            "bad scheme": f"mysql://canary:{quoted}@h/x",
            "no URL": f"postgresql//canary:{quoted}@h/x",
        }
        forms = _forms(canary)
        for name, address in addresses.items():
            for arguments in (["--debug", "db", "status"], ["--debug", "doctor"], ["db", "backup", str(folder)]):
                done = _automl(arguments, environment={"AUTOML_DB_URL": address}, cwd=folder)
                seen = [form for form in forms if form in done.stdout + done.stderr]
                findings.expect(not seen, f"{name}: {arguments}: the password is in the output")
                findings.count += 1
        files = [path for path in folder.rglob("*") if path.is_file()]
        told = [path.name for path in files if any(form.encode() in path.read_bytes() for form in forms)]
        findings.expect(not told, f"the password is in {told}")
        findings.details["files_searched"] = len(files)
    return findings


def _forms(secret: str) -> set[str]:
    plain = secret.encode()
    return {secret, quote(secret, safe=""), quote_plus(secret), base64.b64encode(plain).decode().rstrip("=")}


def _automl(
    arguments: Sequence[str],
    *,
    environment: dict[str, str] | None = None,
    as_nobody: bool = False,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if as_nobody else []
    return subprocess.run(
        [*prefix, sys.executable, "-m", "automl.cli.main", *arguments],
        cwd=cwd or ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def leaks(trial: Trial) -> Findings:
    """R-21, R-13: many trials in one driver; memory, descriptors and threads must not grow with them."""
    findings = Findings()
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    with trial.workspace() as folder:
        process = context.Process(target=_many_trials, args=(str(folder), trial.size, theirs), daemon=True)
        process.start()
        theirs.close()
        samples: list[tuple[int, float, int, int, float]] = []
        try:
            while True:
                samples.append(ours.recv())
        except EOFError:
            process.join(60)
        findings.expect(process.exitcode == 0, f"the driver ended with {process.exitcode}")
    warm = [sample for sample in samples if sample[0] >= min(100, trial.size / 3)]
    if len(warm) < 4:
        findings.violations.append(f"only {len(warm)} samples")
        return findings
    trials = [float(sample[0]) for sample in warm]
    memory, memory_bound = _slope(trials, [sample[1] / 1024 for sample in warm])
    files, _ = _slope(trials, [float(sample[2]) for sample in warm])
    findings.count = samples[-1][0]
    findings.details |= {
        "rss_kb_per_trial": round(memory, 2),
        "rss_kb_per_trial_upper_95": round(memory_bound, 2),
        "descriptors_per_trial": round(files, 4),
        "threads_first_last": [warm[0][3], warm[-1][3]],
        "ms_per_trial_first_last": [round(1000 * sample[4], 1) for sample in (warm[0], warm[-1])],
    }
    findings.expect(memory_bound <= 40.0, f"memory grows by up to {memory_bound:.1f} kB per trial")
    findings.expect(files <= 0.01, f"descriptors grow by {files:.4f} per trial")
    findings.expect(warm[-1][3] <= warm[0][3], f"threads grow: {warm[0][3]} to {warm[-1][3]}")
    return findings


def _many_trials(folder: str, trials: int, samples: Any) -> None:
    from functools import partial

    from automl.execution import make_executor
    from automl.execution.dispatch import Dispatcher
    from automl.testing.formula import FormulaHost
    from tests.faults.search import open_search

    settings = SearchSettings(sampler="random", pruner="peer", trials=trials, steps=6, evaluate_every=2, seed=1)
    me, ended, began = psutil.Process(), 0, time.monotonic()

    def count(event: Any) -> None:
        nonlocal ended, began
        if event.kind not in ("finished", "pruned"):
            return
        ended += 1
        if ended % 25 == 0:
            seconds, began = (time.monotonic() - began) / 25, time.monotonic()
            samples.send((ended, me.memory_info().rss, me.num_fds(), me.num_threads(), seconds))

    executor = make_executor("inline", workers=1, folder=Path(folder))
    with executor, open_search(Path(folder), settings, on_event=count) as opened:
        dispatcher = Dispatcher(opened.study)
        executor.run(dispatcher, partial(FormulaHost, str(Path(folder) / "slots"), capacity=4))
        opened.study.close()
    samples.close()


def _slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Least-squares slope and the upper end of its 95 % confidence interval (normal approximation)."""
    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    spread = sum((each - mean_x) ** 2 for each in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    residual = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    return slope, slope + 1.96 * math.sqrt(residual / max(1, n - 2) / spread)
