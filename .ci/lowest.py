"""Print pip constraints that pin each run-time dependency to the lowest version that pyproject.toml states.

    python .ci/lowest.py > constraints.txt

Extras for development are left out: their tools are not part of the package. So is Ray, which is not tested here.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

EXTRAS = ("qdrant", "train", "onnx", "openvino")
LOWEST = re.compile(r"(?P<name>[\w.-]+)(\[[\w,]+\])?>=(?P<version>[\w.]+)")


def main() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *(each for extra in EXTRAS for each in extras[extra])]:
        found = LOWEST.match(requirement)
        if not found:
            raise SystemExit(f"{requirement!r} states no lowest version; write name>=version")
        print(f"{found['name']}=={found['version']}")


if __name__ == "__main__":
    main()
