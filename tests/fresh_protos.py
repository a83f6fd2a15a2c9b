"""Generate fedpeft/_proto from protos/, or prove that what is checked in is what would be generated."""

import filecmp
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKED_IN = ROOT / "fedpeft" / "_proto"


def generate(folder: Path) -> list[Path]:
    """Write the flat modules of `fedpeft._proto` into a folder; names in protobuf's pool keep their full path."""
    sources = sorted((ROOT / "protos").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", f"--python_out={scratch}"]
        subprocess.run([*command, f"--pyi_out={scratch}", *map(str, sources)], check=True)
        made = sorted(Path(scratch).rglob("*_pb2.py*"))
        for path in made:
            text = re.sub(r"^from fedpeft\.v1 import", "from fedpeft._proto import", path.read_text(), flags=re.M)
            (folder / path.name).write_text(text)
    return [folder / path.name for path in made]


def main() -> int:
    if "--write" in sys.argv:
        generate(CHECKED_IN)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        stale = [
            path.name
            for path in generate(Path(folder))
            if not (CHECKED_IN / path.name).exists() or not filecmp.cmp(path, CHECKED_IN / path.name, shallow=False)
        ]
    if stale:
        print(f"stale generated code: {', '.join(stale)}; run `make protos`", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
