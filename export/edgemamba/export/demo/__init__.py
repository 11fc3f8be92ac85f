"""``edgemamba demo``: the whole way on real data, from a brain volume to an annotated stream.

A small MedMamba learns to tell the plane of section (axial, coronal, sagittal) from slices of the MNI152 template. It shows that
the plumbing works. It is no medical result: there is one brain in it, and that is an average of 152.
"""
