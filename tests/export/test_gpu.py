"""The GPU half of the engines: runs where there is a GPU, skipped elsewhere."""

import numpy as np
import pytest
import torch

from export.backends.plan import MODULES
from export.engine import load_engine
from export.plans import make_plan
from fewstep.card import CheckpointError
from tests.export.conftest import CONFIGS, NCVSD, assert_rows_independent, example_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU"),
]
BACKENDS = ("torch", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")


ABSENT = ("is not installed", "did not load its CUDA provider")  # nothing else excuses a backend


def open_here(folder, backend, buckets):
    """Plans are built here: they lie beside the shared engine, each under a name of its own."""
    try:
        if backend in MODULES:
            make_plan(folder, backend, buckets)
        return load_engine(folder, backend=backend, buckets=buckets)
    except CheckpointError as error:
        if any(words in str(error) for words in ABSENT):
            pytest.skip(str(error))
        if backend == "tensorrt-rtx" and torch.cuda.get_device_capability() == (9, 0):
            pytest.skip(f"TensorRT-RTX leaves these GPUs out: {error}")
        raise


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_equals_the_cpu(checkpoint, kind, backend):
    folder = checkpoint(kind) / "engine"
    reference, engine = load_engine(folder, threads=1), open_here(folder, backend, (1, 4))
    assert engine.device == "cuda" and engine.on_device is not None
    for batch in (1, 4, 6):
        rows = example_rows(reference, batch)
        expected = reference.network(*rows)
        np.testing.assert_allclose(engine.network(*rows), expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["patch", "adm", NCVSD])
def test_a_row_depends_on_no_other_row(checkpoint, kind, backend):
    assert_rows_independent(open_here(checkpoint(kind) / "engine", backend, (8,)), 8)


def test_a_graph_per_bucket_reads_what_lies_in_the_buffers(checkpoint):
    engine = load_engine(checkpoint(NCVSD) / "engine", backend="torch", buckets=(1, 2, 8))
    network = engine.on_device
    assert network is not None and engine.facts["cuda_graphs"] == "3"
    rows = [torch.from_numpy(part) for part in example_rows(engine, 8)]
    for seed in (0, 1):
        for buffer, part in zip((network.x, network.c_noise, network.onehot), rows, strict=True):
            buffer.copy_(part.roll(seed, dims=0))
        for bucket in network.buckets:
            output = network.run(bucket).clone()
            assert output.shape[0] == bucket
            rolled = [part.roll(seed, dims=0)[:bucket].numpy() for part in rows]
            expected = load_engine(checkpoint(NCVSD) / "engine", threads=1).network(*rolled)
            np.testing.assert_allclose(output.float().cpu().numpy(), expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_bytes_of_a_row_are_those_of_the_first_call_for_ever(checkpoint, backend):
    """TensorRT-RTX could otherwise go over to kernels that it compiles while it serves; the buckets share memory."""
    engine = open_here(checkpoint("patch") / "engine", backend, (1, 4))
    rows = example_rows(engine, 4)
    first = {bucket: engine.network(*(part[:bucket] for part in rows)).tobytes() for bucket in (4, 1)}
    for bucket in (1, 4, 4, 1) * 10:
        assert engine.network(*(part[:bucket] for part in rows)).tobytes() == first[bucket]
