"""Which kernels are used."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
sys.modules["numba"] = None  # as on a Python that Numba does not know
import numpy as np
from salmacli.metrics import kernels
from salmacli.metrics.counts import count
from salmacli.metrics.kernels import plain
assert kernels.count is plain.count and not kernels.first_time()
assert count(np.ones((3, 4), dtype=bool), np.zeros((3, 4), dtype=bool)).tolist() == [0, 12, 0, 0, 0, 0]
"""


def test_without_numba_numpy_counts():
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=60)
