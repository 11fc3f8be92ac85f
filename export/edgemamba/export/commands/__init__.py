"""Command-line verbs of the export side, one module each."""
