"""The package as a package: exported names, imports, data files, layers."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import tomllib
import types
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import ras_dit
from ras_dit.config_files import presets

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ras_dit"
ENGINE = {
    *("attention", "cache", "calls", "engine", "guidance", "key_clock", "observe", "patch"),
    *("recorder", "replay", "session"),
}
FRONT = {
    *("cli", "console", "options"),
    *("diagnosis", "evaluation", "generate", "loading", "outline", "report", "study", "tuning"),
    *("animation", "figures", "portrait", "sheet", "visualization"),
}


def layers() -> dict[str, set[str]]:
    """For each file or folder of the package, the others that it imports, at any depth of code."""
    found: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).with_suffix("").parts[0]
        imported = found.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
                if node.module == "ras_dit":
                    modules = [f"ras_dit.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                assert not isinstance(node, ast.ImportFrom), f"relative import in {path}"
                continue
            for module in modules:
                package, _, rest = module.partition(".")
                if package == "ras_dit":
                    imported.add(rest.split(".")[0] or "__init__")
        imported.discard(name)
    return found


LAYERS = layers()


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("errors", set()),
        ("validation", {"config_files", "errors"}),
        ("public_code", {"errors"}),
        ("config_files", {"errors", "public_code"}),
        ("rules", set()),
        ("consistency", {"config", "errors", "validation"}),
        (
            "config",
            {"config_files", "consistency", "errors", "public_code", "rules", "validation"},
        ),
        ("multirate", {"rules", "tokens"}),
        ("schedule", {"config", "errors"}),
        ("tokens", set()),
        ("selection", {"config", "errors", "public_code"}),
        ("fresh", {"errors", "tokens"}),
        ("key_clock", set()),
        ("storage", {"fresh", "rules"}),
        ("cache", {"fresh", "key_clock", "rules", "storage", "tokens"}),
        ("trees", set()),
        ("guidance", {"cache", "tokens", "trees"}),
        ("masked_branch", {"errors", "probe"}),
        ("trace", {"errors", "tokens"}),
        ("observe", set()),
        ("adapters", {"errors", "tokens"}),
        ("world", {"errors"}),
        ("embedded", set()),
        ("cost", {"adapters", "errors", "schedule", "trace"}),
        ("recording", {"errors", "selection", "tokens", "trace"}),
        ("calls", {"cache", "fresh", "guidance", "tokens"}),
        ("replay", {"calls", "errors", "schedule", "trace"}),
        ("recorder", {"calls", "recording", "schedule", "tokens", "trace"}),
        (
            "session",
            {
                "cache",
                "calls",
                "chooser",
                "config",
                "fresh",
                "guidance",
                "key_clock",
                "multirate",
                "recorder",
                "replay",
                "rules",
                "schedule",
                "storage",
                "tokens",
                "trace",
            },
        ),
        ("chooser", {"config", "errors", "public_code", "schedule", "selection", "tokens"}),
        ("tables", {"errors"}),
        ("visualization", {"__init__", "errors", "trace"}),
    ],
)
def test_a_layer_imports_only_the_layers_below(name: str, allowed: set[str]) -> None:
    assert LAYERS[name] <= allowed


def test_the_engine_knows_nothing_of_the_program() -> None:
    for name, imported in LAYERS.items():
        if name not in FRONT | {"__main__"}:
            assert not imported & FRONT, name
        assert "cli" not in imported or name == "__main__"


def test_the_reference_shares_no_code_with_the_engine() -> None:
    seen, todo = set(), {"reference"}
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= LAYERS[name] - seen - {"__init__"}
    assert not seen & ENGINE
    assert "__init__" not in LAYERS["reference"]


def test_the_maths_needs_only_torch() -> None:
    maths = (
        "selection",
        "tokens",
        "fresh",
        "storage",
        "key_clock",
        "cache",
        "multirate",
        "schedule",
    )
    for name in maths:
        tree = ast.parse((SOURCE / f"{name}.py").read_text("utf-8"))
        roots = {
            (node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name)
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        foreign = {root.split(".")[0] for root in roots} - set(sys.stdlib_module_names)
        assert foreign <= {"torch", "ras_dit"}, name


def test_public_names_are_exported_and_documented() -> None:
    public = {
        name
        for name, value in vars(ras_dit).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(ras_dit.__all__)
    assert ras_dit.__all__ == sorted(ras_dit.__all__)
    for name in public:
        assert inspect.getdoc(getattr(ras_dit, name)), name


@pytest.fixture(scope="module")
def fresh_process() -> list[str]:
    """What a process says after ``import ras_dit``, and after a map of regions."""
    heavy = ["matplotlib", "typer", "rich", "torchvision", "transformers", "diffusers.pipelines"]
    code = (
        f"import sys, ras_dit; print([m for m in {heavy} if m in sys.modules]);"
        "import torch; from PIL import Image; from ras_dit.visualization import region_map;"
        "from ras_dit.trace import StepTrace, Trace; from ras_dit.tokens import TokenGrid;"
        "t = Trace('T', TokenGrid(2, 2), 1, 1, 'float32', 0, (StepTrace(0, 'dense', 1., 4, ()),));"
        "region_map(t, Image.new('RGB', (8, 8))); print('matplotlib.pyplot' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    return ran.stdout.splitlines()


def test_import_is_light(fresh_process: list[str]) -> None:
    assert fresh_process[0] == "[]"


def test_pictures_leave_no_global_state(fresh_process: list[str]) -> None:
    assert fresh_process[1] == "False"


def test_the_torch_pin_stands_in_the_constraints() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    assert not [requirement for group in groups for requirement in group if "==" in requirement]
    assert "torch==" in (ROOT / "constraints.txt").read_text()


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata.version("ras-dit") == ras_dit.__version__ == project["version"]


def test_the_wheel_holds_code_and_data(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "ras-dit = ras_dit.cli:main" in archive.read(entry_points).decode()
    for path in SOURCE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert f"ras_dit/{path.relative_to(SOURCE).as_posix()}" in names
    assert "ras_dit/py.typed" in names
    assert {f"ras_dit/presets/{name}.yaml" for name in presets()} <= names
    assert not [name for name in names if name.startswith(("tests", "training"))]
