"""Engines from a bundle's graph: TensorRT 10 and 11, and TensorRT-RTX, which builds without a GPU.

- :mod:`.options`: what the user asks for, checked before anything is loaded;
- :mod:`.checks`: what a parser would only fail on later, or not at all;
- :mod:`.dialects`: in what the versions of the library differ;
- :mod:`.worker`: the one module that talks to the library, in a process of its own;
- :mod:`.engine`: all of it together, into the bundle;
- :mod:`.tools`: the same as trtexec and polygraphy command lines.

Needs onnx, not torch: a device builds its own engines.
"""
