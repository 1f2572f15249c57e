"""AutoML hyperparameter search for LoRA fine-tuning.

The command line (`automl search space.yaml`) is the main entrance; `automl.sweep.run` is the same as a function.
Importing this package is cheap on purpose: it loads neither torch, ray, peft nor transformers.
"""

__version__ = "0.1.0"
