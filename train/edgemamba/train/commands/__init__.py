"""The command-line verbs of this package, one module each."""
