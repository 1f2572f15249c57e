"""Wrong space files: each is answered with its place, its key and what would be right."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from automl.errors import ConfigError
from automl.space.load import load_space, parse_space

HEAD = """\
version: 1
study: trial-run
model: org/name
task: {type: classification, data: rows.csv}
"""


def problems(text: str) -> list[str]:
    """The problems of a file, one line each."""
    with pytest.raises(ConfigError) as caught:
        parse_space(text, "s.yaml", Path("/nowhere"))
    return str(caught.value).splitlines()


def with_line(number: int, line: str) -> str:
    """The valid head with one of its lines replaced."""
    lines = HEAD.splitlines()
    lines[number - 1] = line
    return "\n".join(lines) + "\n"


# What follows the head stands in line 5 and below.
BODIES = {
    "a constraint on forgetting without keep": (
        'constraints: ["forgetting <= 0.05"]',
        "5:15: constraints[0]: 'forgetting' is measured on the data of keep:, which is missing; write keep: {data:",
    ),
    "a constraint on forgetting with an empty keep": (
        'keep:\nconstraints: ["rank <= 4 or forgetting < 1"]',
        "6:15: constraints[0]: 'forgetting' is measured on the data of keep:, which is missing; write keep: {data:",
    ),
    "forgetting to minimise without keep": (
        "search: {also_minimize: forgetting}",
        "5:25: search.also_minimize: 'forgetting' is measured on the data of keep:, which is missing; write keep: {",
    ),
    "forgetting misspelt": (
        'keep: general.jsonl\nconstraints: ["forgeting <= 0.05"]',
        "6:15: constraints[0]: unknown name 'forgeting'; known: ",
    ),
    "forgetting as a text": (
        "keep: general.jsonl\nconstraints: [\"forgetting == 'little'\"]",
        "6:15: constraints[0]: 'little' is a text where a number is needed",
    ),
    "keep of shards": (
        "keep: general.jsonl\nrun: {shards: 2}",
        "5:1: keep: is not known with shards: 2; remove it",
    ),
    "keep by a metric of classes": (
        "keep: {data: general.jsonl, metric: accuracy}",
        "5:37: keep.metric: 'accuracy' does not fit a completion task; known: ",
    ),
    "keep by no metric": (
        "keep: {data: general.jsonl, metric: los}",
        "5:37: keep.metric: unknown metric 'los'; known: ",
    ),
    "keep read as classes": (
        "keep: {data: general.jsonl, type: classification}",
        "5:35: keep.type: 'classification' ",
    ),
    "keep without data": ("keep: {metric: loss}", "5:7: keep.data: is missing"),
    "keep as a list": ("keep: [general.jsonl]", "5:7: keep: "),
    "keep with another key": ("keep: {data: general.jsonl, raws: 4}", "5:29: keep.raws: unknown key; "),
    "keep of a negative number of rows": ("keep: {data: general.jsonl, rows: -1}", "5:35: keep.rows: -1 "),
    "keep from two places": (
        "keep: {data: {file: a.jsonl, hub: org/set}}",
        "5:14: keep.data: needs exactly one of files, file, folder, hub; file and hub are given",
    ),
    "keep out of its package": (
        "keep: {data: {package: automl, file: ../general.jsonl}}",
        "5:14: keep.data: '../general.jsonl' must be a relative path inside the package, without '..'",
    ),
    "shards in one process": (
        "run: {executor: inline, shards: 2}",
        "5:17: run.executor: 'inline' is one process; with shards: 2 it must be ray",
    ),
    "shards and slots": ("run: {shards: 2, slots: 4}", "5:25: run.slots: 4 trials cannot be packed with shards: 2"),
    "shards in bf16h": (
        "run: {shards: 2, precision: bf16h}",
        "5:29: run.precision: 'bf16h' is for packed trials, which are not known with shards: 2; use bf16",
    ),
    "shards of adalora": (
        "space: {method: {type: categorical, choices: [lora, adalora]}}\nrun: {shards: 2}",
        "5:17: space.method: 'adalora' is not known with shards: 2; use lora",
    ),
    "shards of a start from weights": (
        "space: {init: {type: categorical, choices: [gaussian, pissa]}}\nrun: {shards: 2}",
        "5:15: space.init: 'pissa' is not known with shards: 2",
    ),
    "shards of starts that are chosen": (
        "space: {init: auto}\nrun: {shards: 2}",
        "5:15: space.init: 'olora' is not known with shards: 2",
    ),
    "shards of noise that is chosen": (
        "space: {neftune_alpha: auto}\nrun: {shards: 2}",
        "5:24: space.neftune_alpha: is not known with shards: 2",
    ),
    "shards of fixed adalora": (
        "fixed: {method: adalora}\nrun: {shards: 4}",
        "5:17: fixed.method: 'adalora' is not known with shards: 4; use lora",
    ),
    "weights of the model in 16 bits": (
        "fixed: {method: bitfit}\nrun: {precision: bf16}",
        "6:18: run.precision: 'bf16' leaves no whole weights for method bitfit to train; use fp32",
    ),
    "rates of one method where there is one": (
        "space: {learning_rate.lora: auto}",
        "5:9: space.learning_rate.lora: this space has no method to choose but lora; write learning_rate",
    ),
    "rates of a method that is not searched": (
        "space: {method: {type: categorical, choices: [lora, full]}, learning_rate.ful: auto}",
        "5:61: space.learning_rate.ful: is of no method of this space; known: learning_rate.lora, learning_rate.full"
        " (did you mean 'learning_rate.full'?)",
    ),
    "rates of one method on a condition": (
        "space:\n  method: {type: categorical, choices: [lora, full]}\n"
        "  learning_rate.full: {type: float, low: 1e-5, high: 1e-3, when: {method: lora}}",
        "7:60: space.learning_rate.full.when: is said already: these are rates of full; leave it out",
    ),
    "rates of nobody": (
        "space:\n  method: {type: categorical, choices: [lora, full]}\n  learning_rate: auto\n"
        "  learning_rate.full: auto\n  learning_rate.lora: auto",
        "7:3: space.learning_rate: is of no method: each has its own; remove it",
    ),
    "a rate of no method": (
        "space:\n  method: {type: categorical, choices: [lora, full]}\n  learning_rate.full: auto\n"
        "  learning_rate.lora: auto\nenqueue: [{learning_rate: 1e-3}]",
        "9:12: enqueue[0].learning_rate: differs by method here; say the method beside it",
    ),
    "a margin in percent": (
        "verify: {margin: 1}",
        "5:18: verify.margin: 1 is no difference of accuracy: it must be above 0 and below 0.5, in units of the metric",
    ),
    "low above high": ("space:\n  rank: {type: int, low: 64, high: 8}", "6:26: space.rank.low: 64 is above high 8"),
    "low equals high": ("space: {rank: {type: int, low: 8, high: 8}}", "5:32: space.rank.low: 8 equals high"),
    "log from zero": (
        "space: {learning_rate: {type: float, low: 0, high: 1, log: true}}",
        "5:43: space.learning_rate.low: 0.0 is not above 0, as log: true needs",
    ),
    "log with step": (
        "space: {rank: {type: int, low: 2, high: 8, log: true, step: 2}}",
        "5:61: space.rank.step: step and log: true exclude each other",
    ),
    "step misses high": (
        "space: {rank: {type: int, low: 2, high: 9, step: 4}}",
        "5:50: space.rank.step: 4 does not lead",
    ),
    "rank too high": ("space: {rank: {type: int, low: 2, high: 2000}}", "5:41: space.rank.high: 2000 is above 1,024"),
    "rank zero": ("space: {rank: {type: int, low: 0, high: 8}}", "5:32: space.rank.low: 0 is below 1"),
    "float for rank": (
        "space: {rank: {type: float, low: 2, high: 8}}",
        "5:22: space.rank.type: 'float' does not suit rank",
    ),
    "range for target": (
        "space: {target: {type: int, low: 2, high: 8}}",
        "5:24: space.target.type: 'int' does not suit",
    ),
    "unknown type": (
        "space: {rank: {type: itn, low: 2, high: 8}}",
        "5:22: space.rank.type: 'itn' is not known; known: float, int",
    ),
    "no type": ("space: {rank: {low: 2, high: 8}}", "5:15: space.rank: type is missing"),
    "no high": ("space: {rank: {type: int, low: 2}}", "5:15: space.rank.high: is missing"),
    "unknown option": (
        "space: {rank: {type: int, low: 2, hihg: 8, high: 9}}",
        "5:35: space.rank.hihg: unknown key; known: when, type, low, high, log, step (did you mean 'high'?)",
    ),
    "text for number": (
        "space: {rank: {type: int, low: two, high: 8}}",
        "5:32: space.rank.low: 'two' is not a whole number",
    ),
    "decimal for whole": (
        "space: {rank: {type: int, low: 2.0, high: 8}}",
        "5:32: space.rank.low: 2.0 is not a whole number",
    ),
    "truth for number": (
        "space: {rank: {type: int, low: true, high: 8}}",
        "5:32: space.rank.low: true is not a whole number",
    ),
    "scalar in space": ("space: {rank: 8}", "5:15: space.rank: 8 is a single value; write it under fixed:"),
    "list in space": ("space: {rank: [4, 8]}", "5:15: space.rank: a list has no type; write {type: categorical"),
    "no choices": ("space: {rank: {type: categorical, choices: []}}", "5:44: space.rank.choices: is empty"),
    "choice twice": (
        "space: {dropout: {type: categorical, choices: [0, 0.0]}}",
        "5:51: space.dropout.choices[1]: 0.0 is listed twice",
    ),
    "choice of wrong type": (
        "space: {target: {type: categorical, choices: [qv, 8]}}",
        "5:51: space.target.choices[1]: 8 is not a text; quote it",
    ),
    "choice is a list": (
        "space: {rank: {type: categorical, choices: [[8]]}}",
        "5:45: space.rank.choices[0]: a list is not a number",
    ),
    "unquoted on": (
        "space: {target: {type: categorical, choices: [on]}}",
        "5:47: space.target.choices[0]: unquoted on is ambiguous; write true or false, or 'on' in quotes",
    ),
    "unknown parameter": ("space: {rnak: auto}", "5:9: space.rnak: unknown key; known: method, rank,"),
    "name used elsewhere": ("fixed: {lr: 0.1}", "5:9: fixed.lr: unknown key; known: method, rank,"),
    "max_length in space": ("space: {max_length: auto}", "5:9: space.max_length: belongs under fixed:"),
    "no automatic range": (
        "space: {clip: auto}",
        "5:15: space.clip: clip has no automatic range; auto is known for rank",
    ),
    "space is a text": ("space: everything", "5:8: space: 'everything' is neither auto nor a mapping"),
    "alpha and its ratio": (
        "space: {alpha_ratio: auto}\nfixed: {alpha: 16}",
        "5:9: space.alpha_ratio: excludes alpha; keep one of the two",
    ),
    "both free and fixed": ("space: {rank: auto}\nfixed: {rank: 8}", "6:9: fixed.rank: is in space: as well"),
    "unknown target set": (
        "space: {target: {type: categorical, choices: [qvv]}}",
        "5:47: space.target.choices[0]: unknown target set 'qvv'; known: qv, attention, mlp",
    ),
    "fixed unknown target": ("fixed: {target: q}", "5:17: fixed.target: unknown target set 'q'; known: qv"),
    "dropout of one": ("fixed: {dropout: 1}", "5:18: fixed.dropout: 1 is not below 1"),
    "octal": ("fixed: {rank: 010}", "5:15: fixed.rank: 010 has a leading zero; write 10"),
    "hexadecimal": ("fixed: {rank: 0x10}", "5:15: fixed.rank: 0x10 has a leading zero; write a decimal number"),
    "not a number": ("fixed: {alpha: .nan}", "5:16: fixed.alpha: .nan is not a finite number"),
    "infinite": ("fixed: {alpha: -.inf}", "5:16: fixed.alpha: -.inf is not a finite number"),
    "overflowing number": ("fixed: {alpha: 1e999}", "5:16: fixed.alpha: 1e999 is too large for a number"),
    "endless digits": (
        f"fixed: {{rank: {'9' * 5000}}}",
        "5:15: fixed.rank: 9999999999999999999999999999999999999999... has",
    ),
    "range under fixed": ("fixed: {rank: {type: int}}", "5:15: fixed.rank: a mapping is not a whole number"),
    "unknown schedule": (
        "fixed: {schedule: cosin}",
        "5:19: fixed.schedule: 'cosin' is not known; known: constant, linear, cosine (did",
    ),
    "unknown method": ("fixed: {method: dora}", "5:17: fixed.method: 'dora' is not known; known: lora"),
    "condition on nothing": (
        "space: {rank: {type: int, low: 2, high: 8, when: {target: qv}}}",
        "5:51: space.rank.when.target: target is not in space:, so nothing can depend on it",
    ),
    "condition on unknown": (
        "space:\n  target: {type: categorical, choices: [qv, mlp]}\n"
        "  rank: {type: int, low: 2, high: 8, when: {targt: qv}}",
        "7:45: space.rank.when.targt: unknown parameter 'targt'; known: target, rank (did you mean 'target'?)",
    ),
    "condition on fixed": (
        "space: {rank: {type: int, low: 2, high: 8, when: {target: qv}}}\nfixed: {target: qv}",
        "5:51: space.rank.when.target: target is fixed, so nothing can depend on it",
    ),
    "condition never true": (
        "space:\n  target: {type: categorical, choices: [qv, mlp]}\n"
        "  rank: {type: int, low: 2, high: 8, when: {target: [qv, attention]}}",
        "7:58: space.rank.when.target[1]: 'attention' is no value of target, which is one of 'qv', 'mlp'",
    ),
    "condition on two": (
        "space: {rank: {type: int, low: 2, high: 8, when: {target: qv, method: lora}}}",
        "5:50: space.rank.when: names 2 parameters",
    ),
    "condition on a real number": (
        "space:\n  dropout: {type: float, low: 0, high: 0.5}\n  rank: {type: int, low: 2, high: 8, when: {dropout: 0}}",
        "7:45: space.rank.when.dropout: dropout is a range of real numbers",
    ),
    "conditions in a circle": (
        "space:\n  target: {type: categorical, choices: [qv, mlp], when: {rank: 2}}\n"
        "  rank: {type: int, low: 2, high: 8, when: {target: qv}}",
        "7:44: space.rank.when: depends on itself: rank -> target -> rank",
    ),
    "condition on itself": (
        "space: {rank: {type: int, low: 2, high: 8, when: {rank: 2}}}",
        "5:50: space.rank.when: depends on itself: rank -> rank",
    ),
    "enqueued outside": (
        "space: {rank: {type: int, low: 2, high: 8}}\nenqueue: [{rank: 16}]",
        "6:18: enqueue[0].rank: 16 is outside the space; rank lies between 2 and 8",
    ),
    "enqueued unknown": (
        "space: {rank: {type: int, low: 2, high: 8}}\nenqueue: [{dropout: 0}]",
        "6:12: enqueue[0].dropout: is not in space:; known: rank",
    ),
    "enqueued fixed": (
        "space: {rank: auto}\nfixed: {dropout: 0.1}\nenqueue: [{dropout: 0}]",
        "7:12: enqueue[0].dropout: is fixed at 0.1; remove it here",
    ),
    "enqueued inactive": (
        "space:\n  target: {type: categorical, choices: [qv, mlp]}\n"
        "  rank: {type: int, low: 2, high: 8, when: {target: qv}}\nenqueue: [{target: mlp, rank: 2}]",
        "8:25: enqueue[0].rank: is active only when target is 'qv'; remove it here",
    ),
    "enqueued nothing": ("enqueue: [{}]", "5:11: enqueue[0]: is empty; give at least one parameter"),
    "enqueued more than trials": (
        "enqueue: [{rank: 4}, {rank: 8}]\nsearch: {trials: 1}",
        "5:10: enqueue: has 2 entries, more than trials 1",
    ),
    "enqueue a mapping": ("enqueue: {rank: 4}", "5:10: enqueue: a mapping is not a list of mappings"),
    "constraint with unknown name": (
        "constraints: ['trainable_param < 3']",
        "5:15: constraints[0]: unknown name 'trainable_param'; known: method, rank,",
    ),
    "constraint without name": ("constraints: ['1 < 2']", "5:15: constraints[0]: '1 < 2' names no parameter"),
    "constraint not a condition": (
        "constraints: [rank * 2]",
        "5:15: constraints[0]: 'rank * 2' is a number, not a condition",
    ),
    "constraint mixes kinds": (
        "constraints: [target < 2]",
        "5:15: constraints[0]: target is a text where a number is needed",
    ),
    "constraint calls": (
        "constraints: ['open(rank)']",
        "5:15: constraints[0]: open(...) cannot be used in 'open(rank)'; known are",
    ),
    "constraint broken": (
        "constraints: ['rank <']",
        "5:15: constraints[0]: 'rank <' is not a condition; write one such as",
    ),
    "constraint never satisfied": (
        "space: {target: auto}\nfixed: {rank: 8}\nconstraints: [rank > 8]",
        "7:15: constraints[0]: 'rank > 8' is never satisfied",
    ),
    "constraint of a part of the space never satisfied": (
        "space: {rank: {type: int, low: 2, high: 8}, alpha_ratio: {type: categorical, choices: [1, 2]}}\n"
        "constraints: [alpha > 16]",
        "6:15: constraints[0]: 'alpha > 16' is never satisfied, whatever is sampled",
    ),
    "constraints that exclude each other": (
        "space: {rank: {type: int, low: 2, high: 64, log: true}, learning_rate: auto}\n"
        "constraints: [rank > 32, rank < 16, learning_rate > 0.001, trainable_params < 1000]",
        "6:14: constraints: no configuration of the space satisfies all of them",
    ),
    "constraints a text": ("constraints: rank > 8", "5:14: constraints: 'rank > 8' is not a list [...]"),
    "targets shadow": ("targets: {qv: [a]}", "5:11: targets.qv: is a built-in target set already"),
    "pattern broken": ("targets: {mine: ['(a']}", "5:18: targets.mine[0]: '(a' is not a regular expression"),
    "pattern explodes": ("targets: {mine: ['(a+)+b']}", "5:18: targets.mine[0]: '(a+)+b' repeats a group"),
    "pattern wild": (
        "targets: {mine: ['.*a.*b.*c.*d']}",
        "5:18: targets.mine[0]: '.*a.*b.*c.*d' has more than 3 repeats",
    ),
    "pattern long": (f"targets: {{mine: ['{'a' * 201}']}}", "5:18: targets.mine[0]: 'aaaa"),
    "unknown sampler": ("search: {sampler: tpee}", "5:19: search.sampler: 'tpee' is not known; known: tpe, gp, cmaes"),
    "unknown sampler in mapping": (
        "search: {sampler: {name: tpee}}",
        "5:26: search.sampler.name: 'tpee' is not known; known: tpe",
    ),
    "unknown sampler option": (
        "search: {sampler: {name: tpe, n_startup: 3}}",
        "5:31: search.sampler.n_startup: unknown key; known: name, n_startup_trials",
    ),
    "option out of range": (
        "search: {sampler: {name: nsga2, population_size: 1}}",
        "5:50: search.sampler.population_size: 1 is below 2",
    ),
    "option of another sampler": (
        "search: {sampler: {name: random, scramble: true}}",
        "5:34: search.sampler.scramble: unknown key; known: name",
    ),
    "options exclude": (
        "search: {sampler: {name: cmaes, with_margin: true, lr_adapt: true}}",
        "5:19: search.sampler: with_margin and lr_adapt exclude each other",
    ),
    "unknown pruner": (
        "search: {pruner: medain}",
        "5:18: search.pruner: 'medain' is not known; known: halving, peer, median",
    ),
    "threshold without bounds": (
        "search: {pruner: threshold}",
        "5:18: search.pruner: threshold needs lower, upper, or both",
    ),
    "threshold upside down": (
        "search: {pruner: {name: threshold, lower: 2, upper: 1}}",
        "5:18: search.pruner: lower 2 is not below upper 1",
    ),
    "percentile above 100": (
        "search: {pruner: {name: percentile, percentile: 101}}",
        "5:49: search.pruner.percentile: 101 is above 100",
    ),
    "pruner of two objectives": (
        "search: {also_minimize: seconds, pruner: halving}",
        "5:42: search.pruner: 'halving' judges by one objective; with also_minimize leave it out or write none",
    ),
    "sampler of two objectives": (
        "search: {also_minimize: seconds, sampler: cmaes}",
        "5:43: search.sampler: 'cmaes' knows one objective only",
    ),
    "unknown second objective": (
        "search: {also_minimize: rank}",
        "5:25: search.also_minimize: 'rank' is not known; known: trainable_params, seconds",
    ),
    "unknown checkpoint": (
        "search: {checkpoint: first}",
        "5:22: search.checkpoint: 'first' is not known; known: best, last",
    ),
    "no checkpoint of two objectives is the best": (
        "search: {also_minimize: trainable_params, checkpoint: best}",
        "5:55: search.checkpoint: of two objectives (also_minimize: trainable_params) no checkpoint is the best",
    ),
    "an early end with a bad value": (
        "search: {early_stopping: true}",
        "5:26: search.early_stopping: a trial that ended itself would be worth its last, bad value",
    ),
    "early stopping that is none": (
        "search: {checkpoint: best, early_stopping: 3}",
        "5:44: search.early_stopping: 3 is not true or false",
    ),
    "no trials": ("search: {trials: 0}", "5:18: search.trials: 0 is below 1"),
    "too many trials": ("search: {trials: 100001}", "5:18: search.trials: 100001 is above 100,000"),
    "never evaluated": ("search: {steps: 5, evaluate_every: 10}", "5:36: search.evaluate_every: 10 is above steps 5"),
    "bad time": ("search: {time: 2x}", "5:16: search.time: '2x' is not a time; write seconds, or '2h'"),
    "no time": ("search: {time: 0}", "5:16: search.time: 0 must be longer than nothing"),
    "negative seed": ("search: {seed: -1}", "5:16: search.seed: -1 is below 0"),
    "grid of a range": (
        "space: {learning_rate: {type: float, low: 1e-4, high: 1e-2}}\nsearch: {sampler: grid}",
        "5:24: space.learning_rate: is a continuous range, which the sampler grid cannot enumerate",
    ),
    "grid too large": (
        "space: {rank: {type: int, low: 1, high: 256}, batch_size: {type: int, low: 1, high: 1024}}\n"
        "constraints: [rank * batch_size <= 4096]\nsearch: {sampler: grid}",
        "7:19: search.sampler: grid has 262,144 configurations, more than 100,000; use fewer values, or another",
    ),
    "grid whose points violate": (
        "space: {rank: {type: int, low: 2, high: 48, log: true}}\nconstraints: [rank > 32]\nsearch: {sampler: grid}",
        "6:15: constraints[0]: 'rank > 32' is never satisfied, whatever is sampled",
    ),
    "step too small": (
        "space: {dropout: {type: float, low: 0, high: 0.3, step: 1.0e-30}}",
        "5:57: space.dropout.step: 1e-30 is too small to tell values up to 0.3 apart",
    ),
    "max_steps below steps": (
        "search: {steps: 120, max_steps: 100}",
        "5:33: search.max_steps: 100 is less than the 120 steps of one trial",
    ),
    "an empty budget": ("search: {budget: {}}", "5:18: search.budget: says nothing; write one or more of gpu_hours,"),
    "a budget without a kind": ("search: {budget: 40}", "5:18: search.budget: 40 is not a mapping"),
    "no hours": ("search: {budget: {gpu_hours: 0}}", "5:30: search.budget.gpu_hours: 0 is not above 0"),
    "endless hours": (
        "search: {budget: {gpu_hours: .inf}}",
        "5:30: search.budget.gpu_hours: .inf is not a finite number",
    ),
    "hours that are none": (
        "search: {budget: {gpu_hours: .nan}}",
        "5:30: search.budget.gpu_hours: .nan is not a finite number",
    ),
    "hours in quotes": ("search: {budget: {gpu_hours: '8'}}", "5:30: search.budget.gpu_hours: '8' is not a number"),
    "half a token": ("search: {budget: {tokens: 1.5}}", "5:27: search.budget.tokens: 1.5 is not a whole number"),
    "fewer than no examples": ("search: {budget: {examples: -5}}", "5:29: search.budget.examples: -5 is below 1"),
    "a price without a limit": (
        "search: {budget: {cost: {per_gpu_hour: 2.5}}}",
        "5:25: search.budget.cost.limit: is missing",
    ),
    "a limit without a price": (
        "search: {budget: {cost: {limit: 40}}}",
        "5:25: search.budget.cost.per_gpu_hour: is missing",
    ),
    "a free device": (
        "search: {budget: {cost: {per_gpu_hour: 0, limit: 4}}}",
        "5:40: search.budget.cost.per_gpu_hour: 0 is not above 0",
    ),
    "money in two lines": (
        'search: {budget: {cost: {per_gpu_hour: 2, limit: 4, currency: "E\\nUR"}}}',
        "5:63: search.budget.cost.currency: 'E\\nUR' is not a currency; write its code of three capital letters",
    ),
    "money in quotes": (
        "search: {budget: {cost: {per_gpu_hour: 2, limit: 4, currency: '\"EUR\"'}}}",
        "5:63: search.budget.cost.currency: '\"EUR\"' is not a currency; write its code of three",
    ),
    "hours of another name": (
        "search: {budget: {gpu_hour: 4}}",
        "5:19: search.budget.gpu_hour: unknown key; known: gpu_hours, tokens, examples, cost (did you",
    ),
    "hyperband above steps": (
        "search: {pruner: {name: hyperband, min_resource: 500}}",
        "5:50: search.pruner.min_resource: 500 is above steps 120, the largest resource",
    ),
    "hyperband above its own end": (
        "search: {pruner: {name: hyperband, min_resource: 20, max_resource: 10}}",
        "5:50: search.pruner.min_resource: 20 is above max_resource 10",
    ),
    "warm start from itself": (
        "search: {warm_start: trial-run}",
        "5:22: search.warm_start: 'trial-run' is this study; name an earlier",
    ),
    "grid of auto": ("search: {sampler: grid}", "5:19: search.sampler: auto is a range, which the sampler grid cannot"),
    "unknown executor": ("run: {executor: slurm}", "5:17: run.executor: 'slurm' is not known; known: ray, inline"),
    "unknown section": ("sarch: {trials: 3}", "5:1: sarch: unknown key; known: version, study, model"),
    "remote code": ("trust_remote_code: true", "5:1: trust_remote_code: code that comes with a model is never run"),
    "password": (
        "storage: {url: 'postgresql://me:s3cret@host/db'}",
        "5:16: storage.url: holds a password; leave url out",
    ),
    "password in query": (
        "storage: {url: 'postgresql://host/db?password=s3cret'}",
        "5:16: storage.url: holds a password",
    ),
    "unknown database": ("storage: {url: 'mysql://host/db'}", "5:16: storage.url: 'mysql' is not known; known: sqlite"),
    "not a url": ("storage: {url: automl.db}", "5:16: storage.url: 'automl.db' is not known; known: sqlite"),
    "keys of a bucket": ("storage: {artifacts: 's3://me:s3cret@bucket'}", "5:22: storage.artifacts: may hold a bucket"),
    "not a place": (
        "storage: {artifacts: bucket/x}",
        "5:22: storage.artifacts: 'bucket/x' is not a URL, such as s3://",
    ),
    "unknown place": ("storage: {artifacts: 'ftp://x/y'}", "5:22: storage.artifacts: 'ftp' is not known; known: s3,"),
    "relative place": ("storage: {artifacts: 'file://x'}", "5:22: storage.artifacts: is not absolute; write file:///"),
    "key twice": ("search: {trials: 3, trials: 4}", "5:21: search.trials: is given twice; first in line 5"),
    "section is a list": ("search: [3]", "5:9: search: a list is not a mapping {key: value}"),
    "anchor": ("fixed: &f {rank: 8}", "5:8: anchor '&f' is not allowed"),
    "alias": ("fixed: *f", "5:8: alias '*f' is not allowed"),
    "tag": (
        "fixed: !!python/object/apply:os.system [ls]",
        "5:8: tag '!!python/object/apply:os.system' is not allowed",
    ),
    "merge key": ("fixed: {<<: {rank: 8}}", "5:9: fixed.<<: unknown key"),
    "list as key": ("fixed: {[rank]: 8}", "5:9: fixed: a key must be a single word"),
    "unclosed": ("fixed: {rank: 8", "6:1: is not valid YAML: while parsing a flow mapping, expected ',' or '}'"),
    "tab": ("fixed:\n\trank: 8", "6:1: is not valid YAML: while scanning for the next token"),
    "control character": ("fixed: {rank: \x01}", "5:15: control character '\\x01' is not allowed"),
    "nul": ("fixed: {rank: \x00}", "5:15: control character '\\x00' is not allowed"),
    "two documents": ("---\nversion: 1", "5:1: is not valid YAML: expected a single document"),
    "too deep": ("fixed: " + "[" * 40, "5:39: is nested more than 32 levels deep"),
    "too many": ("constraints: [" + "a," * 10_000 + "]", "5:199"),
}

HEADS = {
    "no version": (with_line(1, "# nothing"), "2:1: version: is missing; write 'version: 1'"),
    "version two": (with_line(1, "version: 2"), "1:10: version: 2 is not 1"),
    "version true": (with_line(1, "version: true"), "1:10: version: true is not 1"),
    "study a path": (with_line(2, "study: ../x"), "2:8: study: '../x' is not a name"),
    "study a number": (with_line(2, "study: 7"), "2:8: study: 7 is not a text; quote it"),
    "study too long": (with_line(2, f"study: {'a' * 101}"), "2:8: study: 'aaaa"),
    "study nothing": (with_line(2, "study:"), "2:7: study: is missing"),
    "no model": (with_line(3, "# nothing"), "1:1: model: is missing; write a hub id, a folder or a .gguf file"),
    "two sources": (
        with_line(3, "model: {hub: org/name, folder: x}"),
        "3:8: model: needs exactly one of hub, folder, gguf, package; hub and folder are given",
    ),
    "no source": (
        with_line(3, "model: {revision: main}"),
        "3:8: model: needs exactly one of hub, folder, gguf, package; none",
    ),
    "model a url": (
        with_line(3, "model: https://x.org/y"),
        "3:8: model: 'https://x.org/y' is not a hub id such as 'org/name'",
    ),
    "package a path": (with_line(3, "model: {package: ../x}"), "3:18: model.package: '../x' is not the import name"),
    "path leaves package": (
        with_line(3, "model: {package: x, path: ../../etc}"),
        "3:27: model.path: '../../etc' must be",
    ),
    "absolute in package": (
        with_line(3, "model: {package: x, path: /etc}"),
        "3:27: model.path: '/etc' must be a relative",
    ),
    "quantization that is not known": (
        with_line(3, "model: {hub: org/name, quantization: nf5}"),
        "3:38: model.quantization: 'nf5' is not known; known: none, int8, nf4, fp4",
    ),
    "double_quant of 8 bits": (
        with_line(3, "model: {hub: org/name, quantization: int8, double_quant: true}"),
        "3:8: model: double_quant belongs to quantization nf4 or fp4; remove it",
    ),
    "quantization in shards": (
        with_line(3, "model: {hub: org/name, quantization: int8}\nrun: {shards: 2}"),
        "3:38: model.quantization: 'int8' is not known with shards: 2; use nf4 or fp4",
    ),
    "revision of a folder": (with_line(3, "model: {folder: x, revision: main}"), "3:8: model: revision belongs to hub"),
    "no data": (with_line(4, "task: {type: classification}"), "4:7: task.data: is missing"),
    "unknown task": (
        with_line(4, "task: {type: clasification, data: a.csv}"),
        "4:14: task.type: 'clasification' is not known",
    ),
    "no task type": (with_line(4, "task: {data: a.csv}"), "4:7: task: type is missing"),
    "unknown metric": (
        with_line(4, "task: {type: classification, data: a.csv, metric: acuracy}"),
        "4:51: task.metric: unknown metric 'acuracy'; known: accuracy, macro_f1, mcc, loss (did you mean 'accuracy'?)",
    ),
    "metric of another task": (
        with_line(4, "task: {type: completion, data: a.csv, metric: accuracy}"),
        "4:47: task.metric: 'accuracy' does not fit a completion task; known: loss, perplexity",
    ),
    "option of another task": (
        with_line(4, "task: {type: classification, data: a.csv, format: alpaca}"),
        "4:43: task.format: unknown key; known: type, data, metric",
    ),
    "nothing left to train on": (
        with_line(4, "task: {type: classification, data: a.csv, split: {test: 0.5, validation: 0.5}}"),
        "4:50: task.split: test and validation together must be below 1",
    ),
    "two data sources": (
        with_line(4, "task: {type: classification, data: {file: a.csv, hub: b/c}}"),
        "4:36: task.data: needs exactly one of files, file, folder, hub; file and hub are given",
    ),
    "package without folder": (
        with_line(4, "task: {type: classification, data: {package: x}}"),
        "4:36: task.data: package needs exactly one of folder, file",
    ),
    "data leaves package": (
        with_line(4, "task: {type: classification, data: {package: x, folder: ../y}}"),
        "4:36: task.data: '../y' must be a relative path inside the package",
    ),
    "no training data": (
        with_line(4, "task: {type: classification, data: {files: {test: a.csv}}}"),
        "4:44: task.data.files.train: is missing",
    ),
    "unknown column": (
        with_line(4, "task: {type: classification, data: {file: a.csv, columns: {txt: body}}}"),
        "4:60: task.data.columns.txt: 'txt' is not known; known: text, text_pair",
    ),
    "parts without weights": (
        with_line(4, "task: {type: completion, data: [a.csv, {file: b.csv, weight: 1}]}"),
        "4:33: task.data[0]: 'a.csv' has no weight; a part is written {file: a.csv, weight: 0.5}",
    ),
    "a part that says no weight": (
        with_line(4, "task: {type: completion, data: [{file: a.csv}, {file: b.csv, weight: 1}]}"),
        "4:33: task.data[0].weight: is missing",
    ),
    "a weight of next to nothing": (
        with_line(4, "task: {type: completion, data: [{file: a.csv, weight: 1e-300}, {file: b.csv, weight: 1e9}]}"),
        "4:32: task.data: part 1 has a weight of 1e-300 of 1e+09 in all; a part has a share of 1e-09 at least: "
        "leave it out",
    ),
    "a weight of nothing": (
        with_line(4, "task: {type: completion, data: [{file: a.csv, weight: 0}, {file: b.csv, weight: 1}]}"),
        "4:55: task.data[0].weight: 0 is not above 0",
    ),
    "a negative weight": (
        with_line(4, "task: {type: completion, data: [{file: a.csv, weight: -0.5}, {file: b.csv, weight: 1}]}"),
        "4:55: task.data[0].weight: -0.5 is not above 0",
    ),
    "a weight that is no number": (
        with_line(4, "task: {type: completion, data: [{file: a.csv, weight: .nan}, {file: b.csv, weight: 1}]}"),
        "4:55: task.data[0].weight: .nan is not a finite number",
    ),
    "a weight without end": (
        with_line(4, "task: {type: completion, data: [{file: a.csv, weight: .inf}, {file: b.csv, weight: 1}]}"),
        "4:55: task.data[0].weight: .inf is not a finite number",
    ),
    "a weight as a text": (
        with_line(4, "task: {type: completion, data: [{file: a.csv, weight: 80%}, {file: b.csv, weight: 1}]}"),
        "4:55: task.data[0].weight: '80%' is not a number",
    ),
    "a weight that is true": (
        with_line(4, "task: {type: completion, data: [{file: a.csv, weight: true}, {file: b.csv, weight: 1}]}"),
        "4:55: task.data[0].weight: true is not a number",
    ),
    "a weight beyond measure": (
        with_line(4, "task: {type: completion, data: [{file: a.csv, weight: 1e300}, {file: b.csv, weight: 1}]}"),
        "4:55: task.data[0].weight: 1e+300 is above 1,000,000,000",
    ),
    "a weight without a list": (
        with_line(4, "task: {type: completion, data: {file: a.csv, weight: 1}}"),
        "4:32: task.data: weight belongs to the parts of a list: data: [{file: a.jsonl, weight: 0.8}, ...]",
    ),
    "the same part twice": (
        with_line(4, "task: {type: completion, data: [{file: a.csv, weight: 1}, {file: ./x/../a.csv, weight: 2}]}"),
        "4:32: task.data: parts 1 and 2 are both './x/../a.csv'; name it once, with the sum of the weights",
    ),
    "a part with splits": (
        with_line(4, "task: {type: completion, data: [{files: {train: a.csv}, weight: 1}, {file: b, weight: 1}]}"),
        "4:33: task.data[0]: files: belongs to data without a list; a part is one file, and the split is ours",
    ),
    "a mixture of one": (
        with_line(4, "task: {type: completion, data: [{file: a.csv, weight: 1}]}"),
        "4:32: task.data: a mixture has 2 to 100 parts, not 1; one alone needs no list",
    ),
    "a part of nothing": (
        with_line(4, "task: {type: completion, data: [{weight: 1}, {file: b.csv, weight: 1}]}"),
        "4:33: task.data[0]: needs exactly one of file, folder, hub; none is given",
    ),
    "what is kept as a mixture": (
        with_line(4, "task: {type: completion, data: a.csv}\nkeep: {data: [{file: b.csv, weight: 1}]}"),
        "5:14: keep.data: is one place, not a list of parts; weights are for what is trained on",
    ),
    "a list": ("- a\n- b\n", "1:1: a list is not a mapping of sections"),
    "a text": ("hello", "1:1: 'hello' is not a mapping of sections"),
    "unquoted yes": ("yes", "1:1: unquoted yes is ambiguous"),
    "empty": ("", "s.yaml: is empty; `automl init` writes a space file to start from"),
    "only a comment": ("# later\n", "s.yaml: is empty"),
    "too large": (HEAD + "#" * 270_000, "s.yaml: is larger than 256 kB"),
}


@pytest.mark.parametrize(("body", "expected"), BODIES.values(), ids=list(BODIES))
def test_every_mistake_is_answered_at_its_place(body: str, expected: str) -> None:
    found = problems(HEAD + body + "\n")
    assert len(found) == 1, found
    assert found[0].startswith("s.yaml:" + expected)


@pytest.mark.parametrize(("text", "expected"), HEADS.values(), ids=list(HEADS))
def test_mistakes_in_the_required_sections(text: str, expected: str) -> None:
    found = problems(text)
    assert len(found) == 1, found
    assert found[0].startswith("s.yaml: " if expected.startswith("s.yaml: ") else f"s.yaml:{expected}"), found
    assert expected.removeprefix("s.yaml: ") in found[0]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "fixed: {method: llama-pro}",
            "5:17: fixed.method: 'llama-pro' needs whole weights of the model, which quantization leaves in few bits;"
            " remove one of them",
        ),
        (
            "space: {init: {type: categorical, choices: [default, pissa]}}",
            "5:15: space.init: 'pissa' needs the whole weights, which quantization leaves in few bits; use default,"
            " gaussian, orthogonal, eva",
        ),
    ],
    ids=["a method", "a setting"],
)
def test_what_cannot_be_on_a_quantised_model(body: str, expected: str) -> None:
    head = with_line(3, "model: {hub: org/name, quantization: nf4}")
    assert problems(f"{head}{body}\n") == [f"s.yaml:{expected}"]


def test_all_problems_are_reported_at_once() -> None:
    text = HEAD.replace("trial-run", "a/b") + (
        "space: {rank: {type: int, low: 9, high: 8}, target: 3}\nfixed: {rank: no}\nsearch: {trials: x, pruner: y}\n"
    )
    keys = {line.split(": ")[1] for line in problems(text)}
    assert keys == {"study", "space.rank.low", "space.target", "fixed.rank", "search.trials", "search.pruner"}


def test_a_long_list_of_problems_is_cut() -> None:
    found = problems(HEAD + "fixed: {" + ", ".join(f"k{number}: 1" for number in range(200)) + "}\n")
    assert len(found) == 101
    assert found[0] == "s.yaml: has 100 problems more"


def test_a_password_is_never_quoted() -> None:
    assert "s3cret" not in problems(HEAD + "storage: {url: 'postgresql://me:s3cret@host/db'}\n")[0]


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_space(path)
    return str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'}: does not exist"
    assert refusal(tmp_path) == f"{tmp_path}: is a folder, not a space file"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert refusal(fifo) == f"{fifo}: is not a regular file"  # opening it would wait for a writer for ever
    wrong = tmp_path / "latin.yaml"
    wrong.write_bytes(b"version: 1\nstudy: caf\xe9\n")
    assert refusal(wrong) == f"{wrong}:2:11: byte 0xe9 is not valid UTF-8; save the file as UTF-8"
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * 300_000)
    assert refusal(large) == f"{large}: is larger than 256 kB"


def test_a_missing_optional_package_is_named() -> None:
    from automl.space.checks import missing_package

    message = missing_package("gp", lambda package: package != "scipy")
    assert message == "'gp' needs the package scipy; pip install 'automl-lora[samplers]'"
    assert missing_package("tpe", lambda package: False) == ""
    assert missing_package("cmaes", lambda package: True) == ""


PRESETS = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_that_lacks_a_line_or_has_one_key_too_many_is_read_or_refused(path: Path) -> None:
    """Whatever else depends on the parameter of that line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        for changed in ([], [line.replace("}", ", strange: 1}", 1)]):
            text = "\n".join([*lines[:number], *changed, *lines[number + 1 :]])
            with suppress(ConfigError):
                parse_space(text, path.name, path.parent)
