"""Generate `dspex/v1` from `protos/`, or check that what is committed is in step."""

from __future__ import annotations

import argparse
import filecmp
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GENERATED = Path("dspex/v1")


def generate(target: Path) -> None:
    """Write messages, services and type stubs of every proto file below *target*."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    scripts = Path(sysconfig.get_path("scripts"))
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--proto_path={PROTOS}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--mypy_out=quiet:{target}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        f"--mypy_grpc_out=quiet:{target}",
        *sources,
    ]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    for package in (target / "dspex", target / GENERATED):
        (package / "__init__.py").write_text("")
        (package / "py.typed").write_text("")


def out_of_step(fresh: Path) -> list[str]:
    """Return a line for each committed file that differs from *fresh*, is missing or left over."""

    def names(base: Path) -> set[str]:
        return {
            str(path.relative_to(base))
            for path in (base / "dspex").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    theirs, ours = names(fresh), names(ROOT)
    differing = {name for name in theirs & ours if not filecmp.cmp(fresh / name, ROOT / name, shallow=False)}
    return sorted(
        [f"{name} is missing" for name in theirs - ours]
        + [f"{name} is left over, no proto file makes it: delete it" for name in ours - theirs]
        + [f"{name} differs" for name in differing]
    )


def main() -> int:
    """Run the command line; 1 means out of step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when out of step")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(directory))
        wrong = out_of_step(Path(directory))
    for finding in wrong:
        print(finding)
    if wrong:
        print("generated code is out of step with protos/: run `make protos`")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
