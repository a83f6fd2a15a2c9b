"""Imports point down only, and a third party is imported in its one home."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fedpeft"
FLOOR = {
    "__init__": 0, "errors": 0, "durable": 0, "space": 0, "random": 0, "expressions": 0, "kernels": 0, "_proto": 0,
    "keys": 0, "ternary": 0, "ranking": 0,
    "codecs": 1, "strategies": 1,
    "adapters": 2, "training": 2, "data": 2, "wire": 2, "privacy": 2,
    "federation": 3, "peers": 3,
    "membership": 4, "peering": 4,
    "runtime": 4, "config": 4, "preparation": 4, "run": 4, "simulation": 4, "deployment": 4, "flower": 4,
    "watching": 4, "report": 4, "inspection": 4, "merging": 4,
    "cli": 5,
}  # fmt: skip
HOME = {
    "numba": {"kernels"}, "llvmlite": {"kernels"}, "peft": {"adapters"}, "transformers": {"training"},
    "huggingface_hub": {"training"}, "datasets": {"data"}, "google": {"wire", "federation", "peers", "_proto"},
    "grpc": {"runtime"}, "flwr": {"runtime"}, "cryptography": {"keys"}, "prometheus_client": {"watching"},
    "tensorboard": {"watching"}, "matplotlib": {"report"}, "pydantic": {"config", "report", "watching"},
    "yaml": {"config", "report"}, "typer": {"cli"}, "rich": {"cli", "inspection"},
    "safetensors": {"adapters", "federation"}, "scipy": {"strategies"},
}  # fmt: skip
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "_proto" not in path.parts)


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_and_third_parties_stay_home(path: Path) -> None:
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "fedpeft":
            there = rest[0] if rest and rest[0] in FLOOR else "__init__"
            assert FLOOR[there] <= FLOOR[here], f"{path} ({here}) imports {name}, which lies above it"
        elif top in HOME:
            assert here in HOME[top], f"{path} imports {top}, whose home is {HOME[top]}"


def test_strategies_never_import_codecs() -> None:
    for path in (PACKAGE / "strategies").glob("*.py"):
        assert not any(name.startswith("fedpeft.codecs") for name in imported(path)), path
