"""With KERNELS=sm_90 these tests run what the compiler makes of the kernels for that GPU, not their Python."""

import os

if target := os.environ.get("KERNELS"):
    from tests.ptx.driver import stand_in

    stand_in(int(target.removeprefix("sm_")))
