"""The wheel and the sdist in empty environments: of every Python that is here, as another user, without HOME."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from places import ROOT

VERSIONS = ("3.11", "3.12", "3.13", "3.14")
NOBODY = 65534
KEPT = ("launcher-data",)  # what docs/start.md says that is left


def python_of(version: str) -> str | None:
    """That Python, if it is here and can make environments."""
    candidates = [f"python{version}", *map(str, sorted(Path("/root/.pyenv/versions").glob(f"{version}.*/bin/python")))]
    for candidate in candidates:
        program = shutil.which(candidate)
        code = f"import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '{version}')"
        if program and subprocess.run([program, "-c", code], capture_output=True, check=False).returncode == 0:
            return program
    return None


def of_everybody() -> str:
    """A Python of the tests' version that other users may run too, else the tests' own."""
    program = shutil.which(f"python3.{sys.version_info.minor}", path="/usr/bin:/usr/local/bin")
    command = [program or sys.executable, "-c", "import venv, ensurepip"]
    return command[0] if subprocess.run(command, capture_output=True, check=False).returncode == 0 else sys.executable


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return folder


def succeeds(*command: str | Path, folder: Path, user: int | None = None, **environment: str) -> str:
    """What a command prints that ends well, with nothing in its environment but this."""
    ended = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        user=user,
    )
    assert ended.returncode == 0, f"{command}: {ended.stdout[-800:]}{ended.stderr[-3000:]}"
    return ended.stdout


def with_packages_of_ours(environment: Path) -> None:
    """An environment that sees what is installed for the tests, but not this project."""
    site = next((environment / "lib").glob("python*/site-packages"))
    ours = [path for path in map(Path, sys.path) if path.name == "site-packages"]
    (site / "packages.pth").write_text("".join(f"{path}\n" for path in ours))


@pytest.mark.parametrize("kind", ["whl", pytest.param("tar.gz", marks=pytest.mark.long)])
def test_a_distribution_works_without_home_and_leaves_only_caches(
    tmp_path_factory: pytest.TempPathFactory, distributions: Path, kind: str
) -> None:
    """In an environment of its own, as another user where we may become one."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment, place = folder / "environment", folder / "place"
    succeeds(of_everybody(), "-m", "venv", environment, folder=folder)
    with_packages_of_ours(environment)
    pip = (environment / "bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check")
    (source,) = distributions.glob(f"*.{kind}")
    succeeds(*pip, "install", "--no-deps", "--no-build-isolation", source, folder=folder)
    place.mkdir()
    user = other_user(environment / "bin/python", place)
    launcher = environment / "bin/launcher"
    home = {"TMPDIR": str(place)}
    assert succeeds(launcher, "--version", folder=place, user=user, **home).startswith("launcher ")
    succeeds(launcher, "copy", "digits_mlp", folder=place, user=user, **home)
    settings = ("train.epochs=1", "launch.threads=1", "--cpu", "--quiet")
    trained = succeeds(launcher, "train", "digits_mlp.yaml", *settings, folder=place, user=user, **home)
    assert trained.startswith("finished  step 21")
    assert user is None or next((place / "runs").rglob("status.json")).stat().st_uid == user
    shutil.rmtree(place / "runs")
    (place / "digits_mlp.yaml").unlink()
    succeeds(*pip, "uninstall", "-y", "torchlauncher", folder=folder)
    site = next((environment / "lib").glob("python*/site-packages"))
    assert [path.name for path in site.iterdir() if "launcher" in path.name] == []
    assert not launcher.exists()
    assert [path.name for path in place.iterdir() if not path.name.startswith(KEPT)] == []


def other_user(python: Path, place: Path) -> int | None:
    """Somebody else, where we may become one who gets to the environment; owns the place then."""
    if os.getuid() != 0:
        return None
    for parent in (path for path in place.parents if path.is_relative_to(tempfile.gettempdir())):
        if parent != Path(tempfile.gettempdir()):
            parent.chmod(0o755)  # pytest's own are closed
    try:
        subprocess.run([python, "-c", "import yaml"], user=NOBODY, capture_output=True, check=True, cwd="/")
    except (OSError, subprocess.CalledProcessError):
        return None
    os.chown(place, NOBODY, NOBODY)
    return NOBODY


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", [version for version in VERSIONS if python_of(version)])
def test_every_python_that_is_here_trains(tmp_path: Path, distributions: Path, version: str) -> None:
    python = python_of(version)
    assert python is not None
    succeeds(python, "-m", "venv", tmp_path / "environment", folder=tmp_path)
    inside = tmp_path / "environment/bin/python"
    (wheel,) = distributions.glob("*.whl")
    succeeds(inside, "-m", "pip", "install", "--quiet", f"{wheel}[images,tables]", folder=tmp_path, user=None, **_PIP)
    launcher = tmp_path / "environment/bin/launcher"
    succeeds(launcher, "copy", "digits_cnn", folder=tmp_path, HOME=str(tmp_path))
    trained = succeeds(
        *(launcher, "train", "digits_cnn.yaml", "train.epochs=2", "--cpu", "--processes", "2", "--quiet"),
        folder=tmp_path,
        HOME=str(tmp_path),
    )
    assert trained.startswith("finished  step 42")
    code = "import launcher; print(launcher.load('latest', cpu=True).training)"
    assert succeeds(inside, "-c", code, folder=tmp_path, HOME=str(tmp_path)) == "False\n"


_PIP = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
