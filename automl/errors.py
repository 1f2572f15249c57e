"""Every error this project raises on purpose, as one tree. Nothing else belongs here.

AutomlError                      root; carries the exit code of the command line
├── ConfigError(ValueError)      space.yaml is wrong; holds *all* problems                      exit 2
├── DataError(ValueError)        the user's data is wrong; names file, row and column           exit 2
├── ModelError(ValueError)       a model cannot be found, read or used                          exit 2
│   └── TargetError(LookupError) a target set matches no linear layer                           exit 2
├── MissingExtraError(ImportError)  an optional package is needed; names the extra              exit 2
├── PluginError(ImportError)     what an installed package brings cannot be used; names it      exit 2
├── StorageError(RuntimeError)   the database cannot be opened, read or written                 exit 3
│   ├── StudyNotFoundError(LookupError)  no study of that name in the database                  exit 3
│   ├── SubmissionNotFoundError(LookupError)  no submission of that id in the database      exit 3
│   ├── SubmissionRefused        a sweep of the study is queued already, or too many are        exit 3
│   │   └── QueueFull            too many sweeps are queued                                     exit 3
│   ├── StudyBusyError           another driver holds the study's lease; names the owner        exit 3
│   └── LeaseLostError           this driver lost its lease and must not write any more         exit 3
├── SpaceChangedError(ValueError)  space.yaml is not the one the study was started with         exit 2
├── SearchError(RuntimeError)    the sweep ended without a usable result                        exit 1
│   └── NotEnoughEvidence        trials are too few, or disagree, for a conclusion                exit 1
├── InterruptedSearch            stopped by a signal; resumable                                 exit 4
│   ├── TimeIsUp                 its search.time is over; resumable                             exit 4
│   ├── BudgetSpent              its search.budget is spent; resumable with a larger one        exit 4
│   └── ClusterLost              the Ray cluster it trained on went away; resumable             exit 4
├── ResourceError(OSError)       disk, memory or device is not enough                           exit 5
│   └── PeerLost                 a process that trains a trial together with others is gone     exit 5
├── CheckpointError(ValueError)  a slot file or an adapter is damaged
├── Diverged(ArithmeticError)    a trial's loss or metric is not finite (data, not a bug)
├── MetricError(RuntimeError)    a metric of a trial cannot be computed; says which and why
└── OutOfMemory(MemoryError)     a trial does not fit, even with the smallest micro-batch

The last four concern one trial and are turned into its state at the executor's edge; the others end a command.
All are picklable across processes.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass


class AutomlError(Exception):
    """Root of all errors raised on purpose. `exit_code` is what the command line returns."""

    exit_code = 1


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing wrong in a configuration file: where (`line`, `column` count from 1; 0 = unknown), and what."""

    file: str
    line: int
    column: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (place, self.key, self.message) if part)


class ConfigError(AutomlError, ValueError):
    """All problems of a configuration at once; `str()` gives one line for each."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class DataError(AutomlError, ValueError):
    """The user's data cannot be used; the message names file, row and column."""

    exit_code = 2


class ModelError(AutomlError, ValueError):
    """A model cannot be found, read or used for the task."""

    exit_code = 2


class TargetError(ModelError, LookupError):
    """A target set matches no linear layer of the model; the message lists those that exist."""


class MissingExtraError(AutomlError, ImportError):
    """An optional package is missing; the message says which extra to install."""

    exit_code = 2


class PluginError(AutomlError, ImportError):
    """What an installed package adds to automl cannot be used; the message names the package and the reason."""

    exit_code = 2


class StorageError(AutomlError, RuntimeError):
    """The database cannot be opened, read or written. Credentials never appear in the message."""

    exit_code = 3


class StudyNotFoundError(StorageError, LookupError):
    """No study of that name in the database."""


class SubmissionNotFoundError(StorageError, LookupError):
    """No submission of that id in the database."""


class SubmissionRefused(StorageError):
    """A sweep of this study is queued or running already."""


class QueueFull(SubmissionRefused):
    """The number of sweeps that may be queued or running together is reached."""


class StudyBusyError(StorageError):
    """Another live driver holds the study's lease; the message names its host and process."""


class LeaseLostError(StorageError):
    """This driver's lease was taken over; it must not write any more."""


class SpaceChangedError(AutomlError, ValueError):
    """The space file differs from the one the study was started with."""

    exit_code = 2


class SearchError(AutomlError, RuntimeError):
    """The sweep ended without a usable result (every trial failed, or too many did)."""


class NotEnoughEvidence(SearchError):
    """What the trials have left does not allow the conclusion that was asked for; the message says what is missing."""


class InterruptedSearch(AutomlError):
    """The sweep was stopped before its budget was spent; the same command continues it."""

    exit_code = 4


class TimeIsUp(InterruptedSearch):
    """The time the sweep was given is over before its budget was spent."""


class BudgetSpent(InterruptedSearch):
    """What the sweep may spend on devices, tokens, examples or money is spent; with more, the same command goes on."""


class ClusterLost(InterruptedSearch):
    """The Ray cluster that the sweep trained on went away."""


class ResourceError(AutomlError, OSError):
    """Disk, memory or device is not enough to go on."""

    exit_code = 5


class PeerLost(ResourceError):
    """One of the processes that train a trial together is gone, and the others cannot go on without it."""


class CheckpointError(AutomlError, ValueError):
    """A slot file or an adapter on disk is damaged or incomplete."""


class Diverged(AutomlError, ArithmeticError):
    """A trial's loss or metric is not a finite number."""


class MetricError(AutomlError, RuntimeError):
    """A metric of a trial cannot be computed."""


class OutOfMemory(AutomlError, MemoryError):
    """A trial does not fit into memory even with the smallest micro-batch."""


_SHORT_OF_MEMORY = ("out of memory", "allocate memory", "alloc_failed", "bad_alloc")
"""What RuntimeErrors of torch say: of its allocators for GPUs and CPUs, of cuBLAS and cuDNN, of C++."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error says that memory was not enough, on any device.

    torch has a class for accelerators only, a RuntimeError too; its CPU allocator raises a plain one.
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        return any(phrase in str(error).lower() for phrase in _SHORT_OF_MEMORY)
    return isinstance(error, MemoryError)
