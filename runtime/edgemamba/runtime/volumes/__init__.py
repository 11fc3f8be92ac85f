"""Segmentation of volumes: from a CT or MR series, or NIfTI, to a mask. Needs neither torch nor MONAI."""
