"""The kernels' own tests, on what the compiler makes of the kernels, in a process that doesn't interpret Triton.

A choice of them, half a minute. All: KERNELS=sm_90 python -m pytest tests/kernels
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
CHOSEN = (
    "(three_channels and bfloat16) or not_finite or whatever_is_given or (every_dtype_and_layout and bfloat16) "
    "or words_are"
)


@pytest.mark.skipif(
    "KERNELS" in os.environ or torch.cuda.is_available(), reason="the tests themselves run compiled kernels"
)
def test_compiled_kernels_pass_the_tests_of_the_interpreted():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = ["pytest", "-q", "tests/kernels", "-k", CHOSEN]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT,
        env={**environment, "KERNELS": "sm_90", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout
