"""The operations around the network, fused: one per file, its reference in torch first, then the Triton kernel, then
the launcher.

A launcher is called with tensors. On a GPU it launches the kernel; on a CPU the reference is the operation, as Triton
has no CPU backend. `launch_*` always launches, for Triton's interpreter. All kernels are compiled without contraction
of a * b + c, so that they round where the references round; where one rounding is wanted, `tl.fma` says so.
"""
