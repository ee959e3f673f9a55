"""Which room may import which, and what must not be loaded: the architecture as a test."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("fewstep", "kernels", "trainer", "export", "server", "benchmarks")
ALLOWED = {
    "fewstep": ("fewstep",),
    "kernels": ("kernels",),
    "trainer": ("trainer", "fewstep"),
    "export": ("export", "fewstep", "kernels"),
    # A server reads engines; it never loads what builds them.
    "server": ("server", "fewstep", "kernels", "export.engine", "export.manifest"),
    # benchmarks import anything, and so do tests
}
# Inside the server: what a folder may import of the server beside itself. The files above the folders import anything.
FLOORS = {
    "scheduler": (),
    "settings": (),
    "machine": ("server.scheduler", "server.settings"),
    "processes": ("server.scheduler", "server.settings"),
    "http": ("server.scheduler", "server.settings", "server.processes.pool", "server.processes.shared"),
    "bulk": ("server.scheduler", "server.settings", "server.http.png_text"),
    "hosts": ("server",),
}
POOL_READERS = ("server.http.draining", "server.http.metrics")  # of http, these alone may import processes
# No process on a CPU loads torch, and a program that uses the scheduler alone has no need of what serves HTTP.
# (Its events are structs of msgspec, which loads nothing else.)
NOT_THE_SCHEDULERS = {"fastapi", "starlette", "pydantic", "PIL", "litserve", "torch", "uvicorn"}
TORCH_FREE = (
    "__main__",
    "commands.bench",
    "commands.cluster",
    "commands.export",
    "commands.generate",
    "commands.remake",
    "commands.serve",
    "commands.train",
    "analytic",
    "ancestral",
    "application",
    "blend",
    "cache_folder",
    "card",
    "client",
    "conditions",
    "tensor_file",
    "command_line",
    "consistency",
    "cores",
    "described",
    "dpmpp",
    "editing",
    "extras",
    "outputs",
    "ranges",
    "ipndm",
    "latent",
    "metrics.cache",
    "metrics.class_shares",
    "metrics.extractors.by_name",
    "metrics.extractors.fashion128",
    "metrics.frechet",
    "metrics.kid",
    "metrics.memorisation",
    "metrics.nearest",
    "metrics.pca",
    "metrics.precision_recall",
    "metrics.reference",
    "metrics.spectrum",
    "multistep",
    "noise",
    "pixels",
    "precond",
    "sa_solver",
    "samplers",
    "schedule",
    "scratch",
    "step",
    "subcommands",
    "unet_config",
    "unipc",
    "metadata",
)


# The commands stand above all rooms, although they are named after the core. What they load at their start is the
# core's; the other rooms they import when a command runs.
COMMANDS = (ROOT / "fewstep" / "__main__.py", *sorted((ROOT / "fewstep" / "commands").glob("*.py")))


def imports(source: str) -> Iterator[str]:
    """Every module that a file imports, anywhere in it; `from export import engine` counts as export.engine."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# Rooms of trainer/, from below; a room imports itself and the rooms before it. Files beside them are commands, and
# `fewstep train` runs the commands as stages.
TRAINER_ROOMS = (
    "settings",
    "run",
    "data",
    "levels",
    "critics",
    "methods",
    "rewards",
    "recipes",
    "importing",
    "commands",
    "stages",
)


def trainer_room(module: str) -> str:
    """The room of a module such as trainer.methods.edm."""
    name = module.split(".")[1] if "." in module else "commands"
    return name if name in TRAINER_ROOMS else "commands"


def climbing(module: str, source: str) -> list[str]:
    """Imports by which a module of trainer/ reaches a room above its own."""
    below = TRAINER_ROOMS[: TRAINER_ROOMS.index(trainer_room(module)) + 1]
    return [name for name in imports(source) if name.startswith("trainer.") and trainer_room(name) not in below]


def forbidden(room: str, source: str) -> list[str]:
    """Imports of ours that this room may not have."""
    ours = [name for name in imports(source) if name.partition(".")[0] in (*ROOMS, "tests")]
    return [name for name in ours if not any(f"{name}.".startswith(f"{allowed}.") for allowed in ALLOWED[room])]


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_down(room: str):
    found = {
        str(path.relative_to(ROOT)): names
        for path in sorted((ROOT / room).rglob("*.py"))
        if path not in COMMANDS and (names := forbidden(room, path.read_text("utf-8")))
    }
    assert not found


def is_command(name: str) -> bool:
    return name.startswith(("fewstep.__main__", "fewstep.commands"))


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_command_loads_the_core_alone_at_its_start(path: Path):
    module = ast.parse(path.read_text("utf-8"))
    module.body = [node for node in module.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not forbidden("fewstep", ast.unparse(module))


def test_no_room_imports_the_commands():
    rooms = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if path not in COMMANDS]
    assert not [path for path in rooms if any(is_command(name) for name in imports(path.read_text("utf-8")))]


@pytest.mark.parametrize(
    ("room", "source", "caught"),
    [
        ("fewstep", "import trainer.loop", ["trainer.loop"]),
        ("server", "from export import build", ["export.build"]),
        ("server", "from export.engine import Engine\nimport export.manifest", []),
        ("server", "import export", ["export"]),
        ("kernels", "def f():\n    from fewstep import noise", ["fewstep.noise"]),
        ("export", "import trainers, exporter", []),
        ("trainer", "from tests.fixtures import x", ["tests.fixtures.x"]),
    ],
)
def test_the_check_catches_arrows_that_point_up(room: str, source: str, caught: list[str]):
    assert forbidden(room, source) == caught


def modules(folder: Path) -> dict[str, str]:
    """Source by module name, of the files below a folder of the checkout."""
    files = {path: path.relative_to(ROOT).with_suffix("").parts for path in sorted(folder.rglob("*.py"))}
    return {
        ".".join(parts[:-1] if parts[-1] == "__init__" else parts): path.read_text("utf-8")
        for path, parts in files.items()
    }


def arrows(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Module -> the modules among these that it imports."""

    def among(name: str) -> str:
        return name if name in sources else name.rpartition(".")[0]

    return {module: {among(name) for name in imports(source)} & set(sources) for module, source in sources.items()}


def upward(sources: Mapping[str, str]) -> list[tuple[str, str]]:
    """Imports inside the server that FLOORS does not allow."""
    found = []
    for module, imported in arrows(sources).items():
        floor = module.split(".")[1] if module.count(".") > 1 else ""
        if not floor:
            continue
        for name in imported:
            allowed = any(f"{name}.".startswith(f"{each}.") for each in (f"server.{floor}", *FLOORS[floor]))
            if floor == "http" and name.startswith("server.processes.") and module not in POOL_READERS:
                allowed = False
            if not allowed:
                found.append((module, name))
    return found


def test_arrows_inside_the_server_point_down():
    sources = modules(ROOT / "server")
    assert {module.split(".")[1] for module in sources if module.count(".") > 1} == set(FLOORS)
    assert upward(sources) == []


@pytest.mark.parametrize("folder", ["server", "export", "fewstep", "kernels", "trainer"])
def test_no_files_import_each_other_in_a_circle(folder: str):
    graph = arrows(modules(ROOT / folder))
    assert sum(map(len, graph.values())) > 5, "the files moved; this test looks at nothing"
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the files


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("server.scheduler.loop", "import server.settings.settings", True),
        ("server.scheduler.loop", "def f():\n    from server.http import pictures", True),
        ("server.scheduler.loop", "from server.scheduler.slots import Image", False),
        ("server.settings.sources", "from server.scheduler import slots", True),
        ("server.processes.pool", "from server.http.access import Record", True),
        ("server.processes.pool", "from server.settings.settings import Settings", False),
        ("server.http.app", "from server.processes import pool", True),
        ("server.http.app", "from server.hosts.forked import ForkedServer", True),
        ("server.http.metrics", "from server.processes.pool import WorkerPool", False),
        ("server.http.metrics", "from server.processes.worker import load", True),
        ("server.http.dialects.native", "from server.processes.pool import WorkerPool", True),
        ("server.processes.worker", "from server.logs import configure", True),
        ("server.hosts.forked", "from server.http.app import App", False),
    ],
)
def test_the_check_catches_arrows_of_the_server_that_point_up(module: str, source: str, caught: bool):
    sources = dict.fromkeys(modules(ROOT / "server"), "")
    assert bool(upward({**sources, module: source})) == caught


def test_the_check_catches_a_circle():
    graph = arrows({"a.b": "def f():\n    from a.c import x", "a.c": "import a.d", "a.d": "from a import b"})
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph).static_order())


def loaded(code: str) -> set[str]:
    """The packages that are loaded once a new interpreter has run some code."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    command = [sys.executable, "-c", f"import atexit; atexit.register(lambda: exec({report!r}))\n{code}"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return set(done.stderr.split())


def test_the_scheduler_loads_nothing_of_http():
    names = [name for name in modules(ROOT / "server" / "scheduler") if name != "server.scheduler.device_slots"]
    assert "server.scheduler.local" in names
    assert not loaded("\n".join(f"import {name}" for name in names)) & {*NOT_THE_SCHEDULERS, "onnxruntime"}


def test_a_server_starts_without_pillow():
    assert "PIL" not in loaded("import server.hosts.http_process"), "the first picture to decode loads it"


def test_the_parent_of_a_server_loads_neither_the_web_framework_nor_litserve():
    packages = loaded("import server.hosts.forked, server.__main__")
    assert "msgspec" in packages  # of the messages between processes
    assert not packages & {*NOT_THE_SCHEDULERS, "onnxruntime"}


def test_help_is_printed_before_anything_heavy_is_loaded():
    run = "import runpy, sys; sys.argv = ['server', '--help']; runpy.run_module('server', run_name='__main__')"
    packages = loaded(run)
    assert "server" in packages
    assert not packages & {*NOT_THE_SCHEDULERS, "onnxruntime", "numpy", "msgspec"}


def test_the_rooms_of_the_trainer_stand_on_one_another_and_in_no_circle():
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "trainer").rglob("*.py")}
    folders = {path.parent.name for path in (ROOT / "trainer").glob("*/*.py")}
    assert folders <= set(TRAINER_ROOMS), "a new room has to be given its place"
    assert {name: up for name, path in paths.items() if (up := climbing(name, path.read_text("utf-8")))} == {}


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("trainer.run.loop", "from trainer.data.format import ImageSet", ["trainer.data.format.ImageSet"]),
        ("trainer.critics.classifier", "def f():\n    import trainer.methods.edm", ["trainer.methods.edm"]),
        ("trainer.levels.search", "from trainer import commands", ["trainer.commands"]),
        ("trainer.commands", "from trainer.methods.edm import Teacher", []),
        ("trainer.methods.gan", "from trainer.settings import AdamConfig\nfrom trainer.run import loop", []),
    ],
)
def test_the_check_catches_rooms_that_climb(module: str, source: str, caught: list[str]):
    assert climbing(module, source) == caught


def test_no_benchmark_script_shadows_a_room():
    # A script's own folder comes first on the path: benchmarks/kernels.py would hide the package `kernels`.
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert not names & {*ROOMS, "tests"}


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_serving_half_of_the_core_does_not_load_torch(module: str):
    code = f"import sys, fewstep.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_core_module_says_on_which_side_of_torch_it_stands():
    core = ROOT / "fewstep"
    modules = {".".join(path.relative_to(core).with_suffix("").parts) for path in core.rglob("*.py")}
    modules = {name for name in modules if not name.endswith("__init__")}
    with_torch = {
        "adapters",
        "checkpoint",
        "ddpm_network",
        "diffusers_folder",
        "edm2_network",
        "network",
        "noise_torch",
    }
    with_torch |= {"older_precond", "residual_precond"}
    with_torch |= {"metrics.panel", "metrics.two_sample"}
    with_torch |= {
        f"metrics.extractors.{name}" for name in ("efficientnet_lite0", "inception", "random_convolutions", "teacher")
    }
    assert modules - with_torch == set(TORCH_FREE)
