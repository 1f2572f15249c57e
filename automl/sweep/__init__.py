"""The composition root: joins space, models, tasks, storage, study, training and execution into one sweep."""
