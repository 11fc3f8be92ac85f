"""The verbs of the command line that a device has, one module each; mounted by :mod:`edgemamba.runtime.cli`."""
