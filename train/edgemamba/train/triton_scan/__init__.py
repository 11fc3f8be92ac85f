"""The selective scan on NVIDIA GPUs, in Triton: what ``torch.ops.edgemamba.selective_scan`` runs for CUDA tensors.

    arithmetic       softplus and the reading of rows
    forward_kernel   the scan, and the states that the backward starts from
    backward_kernel  the gradients
    launch           tensors in, tensors out
    configuration    what may be tuned
    tuning           the choice, timed once for a GPU and remembered
    ahead            compiling without a GPU; registers and spills

Importing a submodule needs Triton, which PyTorch's CUDA builds for Linux bring along.
"""
