"""Revisions, oldest first by file name. A released revision is never edited."""
