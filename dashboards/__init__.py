"""The web pages and the JSON API of a database: what searches do, what nights came of, what may be submitted.

Started by `automl dashboard`. Pages and API only read; a submission is a row in SQL that `automl scheduler` runs.
"""
