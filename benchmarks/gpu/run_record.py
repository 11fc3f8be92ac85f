"""What a run of run.sh came to, as JSON: device, driver, versions, commit, and each step's exit status and seconds.

python benchmarks/gpu/run_record.py FILE [NAME STATUS SECONDS]...
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgemamba.runtime.provenance import package_version, provenance

PACKAGES = ("torch", "triton", "mamba_ssm", "tensorrt", "tensorrt-rtx", "onnxruntime-gpu", "cuda-bindings")
QUERY = ("name", "driver_version", "compute_cap", "memory.total")


def device() -> dict[str, str]:
    """What nvidia-smi says of the first GPU; empty where it says nothing."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return {}
    first = (done.stdout.splitlines() or [""])[0]
    return dict(zip(QUERY, (value.strip() for value in first.split(",")), strict=False))


def record(steps: list[str]) -> dict[str, Any]:
    """The document; ``steps``: name, status and seconds of each, one after another."""
    facts = provenance()
    facts["commit"] = facts["commit"] or os.environ.get("COMMIT")
    facts["packages"] |= {name: found for name in PACKAGES if (found := package_version(name))}
    rows = [
        {"name": name, "status": int(status), "seconds": int(seconds)}
        for name, status, seconds in zip(steps[::3], steps[1::3], steps[2::3], strict=True)
    ]
    return {"benchmark": "gpu/run.sh", **facts, "device": device(), "steps": rows}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(record(sys.argv[2:]), indent=2) + "\n")
