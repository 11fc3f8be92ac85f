"""A camera (or any other source) through a bundle, in ten lines.

python examples/camera_loop.py vim_tiny/ 0          # camera 0
python examples/camera_loop.py vim_tiny/ clip.mp4
"""

import sys

from edgemamba.runtime import load, stream

folder, source = sys.argv[1:3]
with load(folder) as engine:
    for result in stream(source, engine):
        best = result.top[0]
        print(f"{result.frame.timestamp:8.2f} s  {best.name}  {best.probability:.0%}")
