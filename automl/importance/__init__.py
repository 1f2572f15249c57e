"""Which modules a trained low-rank update lives in, and what that suggests for the ranks. See docs/importance.md."""
