"""Mixtures of finished adapters: made, chosen by validation rows, and held against the winner on test rows."""
