"""A device network as one on numpy arrays: copies in, runs, copies back."""

import threading
from typing import Any

import numpy as np
import torch

from export.backends.buckets import through_buckets
from export.backends.opened import Floats, HostNetwork
from export.device_network import DeviceNetwork


def host_network(network: DeviceNetwork) -> HostNetwork:
    """For callers without kernels on the device: the proof, the samplers, and tests. One call at a time."""
    lock = threading.Lock()  # the buffers hold the inputs of one call

    def call(*arguments: Any) -> Floats:
        *arrays, bucket = arguments
        buffers = [network.x, network.c_noise, network.onehot, *network.conditions.values()]
        if len(arrays) > len(buffers):
            assert network.adapter is not None, "a network without adapters was given some"
            buffers.append(network.adapter)
        with lock:
            for buffer, rows in zip(buffers, arrays, strict=True):
                buffer[:bucket].copy_(torch.from_numpy(np.ascontiguousarray(rows)))
            # A copy also on a CPU: the network overwrites its output at the next run.
            return network.run(bucket).to("cpu", torch.float32, copy=True).contiguous().numpy()

    return through_buckets(call, network.buckets)
