"""Checkpoint -> engine directory (`fewstep export`), and the reader of that directory, without torch."""

import os

# Official builds of ONNX Runtime report their use to their maker and keep an identifier on the disk for it, unless this
# is set when they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
