"""Print the lowest version of every package that pyproject.toml allows, as constraints for pip."""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest_versions(project: dict) -> list[str]:
    """One constraint for each package of the dependencies and of the extras that tests need."""
    extras = project["optional-dependencies"]
    requirements = project["dependencies"] + [entry for name in ("plot", "data", "test") for entry in extras[name]]
    found = [re.match(r"([\w-]+)>=([\w.]+)", entry) for entry in requirements]
    return [f"{match[1]}=={match[2]}" for match in found if match]


if __name__ == "__main__":
    print("\n".join(lowest_versions(tomllib.loads(PROJECT.read_text())["project"])))
