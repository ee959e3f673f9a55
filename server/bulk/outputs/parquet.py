"""Parquet, as Hugging Face's `datasets` reads it: image {bytes, path}, seed, label (a class index), and the model; of
orders that have them, guidance, and input: the name of the picture that was enlarged.

The schema's metadata has the recipe under "fewstep", with the names of the classes.
"""

import json
from pathlib import Path
from typing import Any

from fewstep.card import replacing
from server.bulk.order import Order
from server.bulk.outputs.folder import name_of
from server.bulk.outputs.kind import Chunks, Kind


def write(out: Path, order: Order, file: int, chunks: Chunks) -> None:
    import pyarrow as pa  # pyright: ignore[reportMissingImports]
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": image, "seed": pa.int64(), "label": pa.int64(), "checkpoint": pa.string()}
    if order.guidance is not None:
        columns["guidance"] = pa.float32()
    if order.inputs is not None:
        columns["input"] = pa.string()
    schema = pa.schema(list(columns.items()), metadata={"fewstep": json.dumps(order.recipe())})
    with replacing(out) as target, pq.ParquetWriter(target, schema) as writer:
        for number, pixels in chunks:  # a row group each
            pictures = list(order.pictures(number, pixels))
            rows = {
                "image": [{"bytes": each.png, "path": f"{name_of(order, each.seed)}.png"} for each in pictures],
                "seed": [each.seed for each in pictures],
                "label": [each.label if each.label >= 0 else None for each in pictures],
                "checkpoint": [order.manifest.checkpoint] * len(pictures),
                "guidance": [order.guidance] * len(pictures),
                "input": [each.facts.get("input") for each in pictures],
            }
            writer.write_table(pa.Table.from_pydict({name: rows[name] for name in columns}, schema))


def recipe(out: Path) -> dict[str, Any] | None:
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    text = (pq.read_schema(out).metadata or {}).get(b"fewstep")
    return None if text is None else json.loads(text)


KIND = Kind(".parquet", "a table of image, seed, label, checkpoint", write, recipe, needs="pyarrow")
