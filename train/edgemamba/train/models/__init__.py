"""The backbones, one file a family. :mod:`edgemamba.train.registry` imports the families when it is first asked for one."""
