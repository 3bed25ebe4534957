"""The setup of `.venv`, with folders that look like one."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from deploy import setup_venv
from deploy.local.location import ROOT


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.lock"
    path.write_text("package==1\n")
    return path


@pytest.fixture
def venv(tmp_path: Path, lock: Path) -> Path:
    """A complete environment."""
    folder = tmp_path / "a b/.venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to(sys.executable)
    (folder / ".ready").write_text(setup_venv.wanted(folder, lock))
    return folder


def test_a_complete_environment_is_kept(venv: Path, lock: Path) -> None:
    assert setup_venv.reason_to_install(venv, lock) is None


def test_an_environment_whose_python_is_gone_is_made_anew(venv: Path, lock: Path) -> None:
    (venv / "bin/python").unlink()
    (venv / "bin/python").symlink_to("/nowhere/python3")
    assert "Python does not run" in (setup_venv.reason_to_install(venv, lock) or "")


def test_an_environment_that_was_moved_or_copied_is_made_anew(venv: Path, lock: Path, tmp_path: Path) -> None:
    shutil.copytree(venv, tmp_path / "copy/.venv", symlinks=True)
    assert "moved" in (setup_venv.reason_to_install(tmp_path / "copy/.venv", lock) or "")


def test_an_interrupted_or_changed_installation_is_repeated(venv: Path, lock: Path) -> None:
    lock.write_text("package==2\n")
    assert "packages have changed" in (setup_venv.reason_to_install(venv, lock) or "")
    (venv / ".ready").unlink()
    assert setup_venv.reason_to_install(venv, lock)


def test_an_environment_of_an_earlier_release_is_kept_if_it_is_of_this_folder(venv: Path, lock: Path) -> None:
    packages = venv / "lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    (packages / "stampede.pth").write_text(f"{venv.parent}\n")
    (venv / ".ready").write_text("")
    assert setup_venv.reason_to_install(venv, lock) is None
    (packages / "stampede.pth").write_text("/elsewhere\n")
    assert setup_venv.reason_to_install(venv, lock)
    (packages / "stampede.pth").write_text(f"{venv.parent}\n")
    os.utime(venv / ".ready", (0, 0))
    assert setup_venv.reason_to_install(venv, lock)


def test_make_checks_the_environment_each_time() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "$(READY): FORCE\n\t@$(SETUP_VENV) $(VENV) requirements-dev.lock" in makefile
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS"):
        assert name in makefile.partition("unexport")[2].partition("\n")[0]
