"""Where TensorRT's plans lie in an engine directory, and what each was built for. Standard library only.

A plan fits one network, one set of batch sizes, one version of the library and one kind of GPU. All of that is in the
JSON file beside it, and a hash of it in its name: another plan is never picked up by mistake.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from export.manifest import BACKEND_TENSORRT, BACKEND_TENSORRT_RTX, Manifest
from fewstep.card import CheckpointError, write_atomically

PLANS_FOLDER = "plans"
PLAN_FORMAT = 2
MODULES = {BACKEND_TENSORRT: "tensorrt", BACKEND_TENSORRT_RTX: "tensorrt_rtx"}
# TensorRT-RTX builds ahead of time for every GPU it knows and compiles for the present one when it loads a plan.
ANY_GPU = "any"


@dataclass(frozen=True)
class PlanKey:
    """What a plan depends on."""

    backend: str
    library: str  # version of the TensorRT that built it, and the only one that runs it
    network_sha256: str
    dtype: str
    buckets: tuple[int, ...]  # one optimisation profile each
    gpu: str  # compute capability such as "9.0", or ANY_GPU

    def path(self, folder: Path) -> Path:
        """Of the plan in an engine directory; the key itself lies beside it, as JSON."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return folder / PLANS_FOLDER / f"{self.backend}-{digest[:16]}.plan"

    def timing_cache(self, folder: Path) -> Path:
        """Measured kernel times, which all plans of one library and GPU share."""
        return folder / PLANS_FOLDER / f"{self.backend}-{self.library}-{self.gpu}.timing"


def plan_key(manifest: Manifest, backend: str, library: str, buckets: tuple[int, ...], gpu: str) -> PlanKey:
    gpu = ANY_GPU if backend == BACKEND_TENSORRT_RTX else gpu
    return PlanKey(backend, library, manifest.network_sha256, manifest.dtype, buckets, gpu)


def write_plan(folder: Path, key: PlanKey, plan: bytes) -> Path:
    """Write a plan and its key; returns the plan's path."""
    path = key.path(folder)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, plan)
    described = {**asdict(key), "sha256": hashlib.sha256(plan).hexdigest(), "format": PLAN_FORMAT}
    write_atomically(path.with_suffix(".json"), (json.dumps(described, indent=2) + "\n").encode())
    return path


def find_plan(folder: Path, key: PlanKey) -> PlanKey:
    """The key of a plan that serves `key`: the same one, or one with more buckets. `key` itself when there is none."""
    wanted = json.loads(json.dumps(asdict(key)))
    fitting = [key]
    for path in sorted((folder / PLANS_FOLDER).glob(f"{key.backend}-*.json")):
        plan = _described(path)
        same = all(plan.get(name) == wanted[name] for name in wanted if name != "buckets")
        buckets = plan.get("buckets")
        if same and isinstance(buckets, list) and set(key.buckets) <= set(buckets):
            fitting.append(replace(key, buckets=tuple(buckets)))
    present = [plan for plan in fitting if plan.path(folder).is_file()]
    return min(present, key=lambda plan: len(plan.buckets), default=key)


def read_plan(folder: Path, key: PlanKey) -> bytes:
    """The plan of exactly this key. Raises CheckpointError that says what another one was built for."""
    path = key.path(folder)
    if not path.is_file():
        raise CheckpointError(f"{_missing(folder, key)} Build one with: {plan_command(folder, key)}")
    plan = path.read_bytes()
    described = _described(path.with_suffix(".json"))
    if hashlib.sha256(plan).hexdigest() != described.get("sha256") or described.get("format") != PLAN_FORMAT:
        raise CheckpointError(
            f"{path} is truncated, or not the plan its JSON file describes. "
            f"Build it again with: {plan_command(folder, key)}"
        )
    return plan


def plan_command(folder: Path, key: PlanKey) -> str:
    buckets = ",".join(map(str, key.buckets))
    return f"fewstep export plan {folder} --backend {key.backend} --buckets {buckets}"


def _missing(folder: Path, key: PlanKey) -> str:
    """Why no plan fits: there is none, or the nearest one differs in what is named here."""
    found = [_described(path) for path in sorted((folder / PLANS_FOLDER).glob(f"{key.backend}-*.json"))]
    if not found:
        return f"{folder} holds no plan for backend {key.backend}."
    wanted = json.loads(json.dumps(asdict(key)))
    stale = [{name: plan.get(name) for name in wanted if plan.get(name) != wanted[name]} for plan in found]
    nearest = min(stale, key=len)
    reasons = ", ".join(f"{name} {_short(value)} instead of {_short(wanted[name])}" for name, value in nearest.items())
    return f"the plan in {folder / PLANS_FOLDER} is stale: it was built for {reasons}."


def _described(path: Path) -> dict[str, object]:
    try:
        described = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return described if isinstance(described, dict) else {}


def _short(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{text[:12]}..." if len(text) == 64 else text
