# SPDX-License-Identifier: GPL-2.0-only
"""`pip install .` into an empty environment gives everything, under one name."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from bdr.services.cli.main import SECTIONS

ROOT = Path(__file__).parents[2]
FOLDERS = ("bdr", "common", "services", "deploy")
FILES = ("pyproject.toml", "README.md", "supervisord.conf")
SHIPPED = {
    "supervisord.conf",
    "bdr.example.toml",
    "bdr.service",
    "bdr-attach.service",
    "bdr.logrotate",
    "prometheus-rules.yml",
    "grafana-dashboard.json",
}
IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import bdr
for module in pkgutil.walk_packages(bdr.__path__, "bdr."):
    if module.name != "bdr.__main__":
        importlib.import_module(module.name)
from bdr.services.supervise.files import shipped
print(shipped("supervisord.conf"))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing but BDR and what it needs."""
    directory = tmp_path_factory.mktemp("installation")
    source, environment = directory / "source", directory / "environment"
    source.mkdir()
    # A copy: building leaves files behind, which the next build would take in.
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    venv.create(environment, with_pip=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", str(source)]
    subprocess.run(pip, check=True)
    return environment


def _site_packages(environment: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return environment / "lib" / version / "site-packages"


@pytest.mark.timeout(600)
def test_installation_has_every_module_under_one_name(installed: Path) -> None:
    packages = _site_packages(installed)
    assert not (packages / "common").exists()
    assert not (packages / "services").exists()
    for folder in ("common", "services"):
        ours = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py")}
        theirs = {
            path.relative_to(packages / "bdr") for path in (packages / "bdr" / folder).rglob("*.py")
        }
        assert theirs == ours


def test_installation_imports_every_module_and_finds_its_files(installed: Path) -> None:
    python = [str(installed / "bin" / "python"), "-W", "error", "-c", IMPORT_EVERYTHING]
    found = subprocess.run(python, check=True, capture_output=True, text=True, cwd="/").stdout
    assert Path(found.strip()) == installed / "share" / "bdr" / "supervisord.conf"
    assert {path.name for path in (installed / "share" / "bdr").iterdir()} == SHIPPED


def test_every_command_of_an_installation_runs(installed: Path) -> None:
    for names in SECTIONS.values():
        for name in names:
            command = [str(installed / "bin" / "bdr"), name, "--help"]
            subprocess.run(command, check=True, capture_output=True, cwd="/")
