"""A folder of DICOM files to one JSON line a frame. Unreadable files are skipped, named and counted.

python examples/dicom_folder.py medmamba_t/ study/ results.jsonl
"""

import sys

from edgemamba.runtime import load, open_source, stream
from edgemamba.runtime.sinks import JsonlSink

folder, study, out = sys.argv[1:4]
with load(folder) as engine, open_source(study) as source, JsonlSink(out) as sink:
    frames = sum(1 for _ in stream(source, engine, sinks=[sink]))
print(f"{frames} frames written to {out}")
