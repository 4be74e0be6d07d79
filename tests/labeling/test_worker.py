from __future__ import annotations

import subprocess
import sys


def test_importing_the_worker_loads_no_ray() -> None:
    code = "import sys, ray_fer.labeling.worker; print([name for name in ('ray', 'torch') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
