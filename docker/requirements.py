"""Print what pyproject.toml requires, or what one of its extras does, for `pip install --requirement`.

pip installs the dependencies of a project only together with its source; an image wants them in a layer of their own.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extra = sys.argv[1:]
sys.stdout.writelines(
    f"{line}\n" for line in (project["optional-dependencies"][extra[0]] if extra else project["dependencies"])
)
