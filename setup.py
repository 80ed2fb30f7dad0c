"""Maps the top-level folders into one package: `ir/` is installed as `tersor.ir`, and so on.

setuptools can be told such a mapping in pyproject.toml, but then every sub-folder has to be listed too.
"""

from setuptools import find_packages, setup

PARTS = ["ir", "passes", "codegen", "runtime"]

nested = find_packages(include=[pattern for part in PARTS for pattern in (part, f"{part}.*")])

setup(
    packages=[*find_packages(include=["tersor", "tersor.*"]), *(f"tersor.{name}" for name in nested)],
    package_dir={"tersor": "tersor", **{f"tersor.{part}": part for part in PARTS}},
)
