"""What a user would write without automl: the opponents of `sweep_throughput`. Nothing here imports `automl`.

Each is a command, `python -m benchmarks.baselines.NAME WORLD.json`, that trains every configuration of the world once
and appends a line for each trial to its results file.
"""
