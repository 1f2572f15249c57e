"""Finalists trained again over fresh seeds, scored on rows the search never read. See docs/verification.md."""
