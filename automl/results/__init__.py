"""A study read back: recorded spec, ranking, summary, suggestion, folders. Nothing here trains or draws."""
