"""What people type: every way in does the same run, and bad input ends in one line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from places import ROOT
from worlds import TINY, Trained, result_of, train

import launcher
from launcher.cli.main import main

CPU = {"ACCELERATE_USE_CPU": "true"}
SHORT = ["train.epochs=2", "launch.threads=1"]


def command(name: str) -> str:
    """A console command of the environment that runs the tests."""
    return str(Path(sys.executable).parent / name)


def shell(
    *arguments: str | Path, folder: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    # an accelerate config of the person who runs the tests is not part of them
    clean |= {"HF_HOME": str(folder / "no-config"), "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.run(
        [str(one) for one in arguments], cwd=folder, env=clean, capture_output=True, text=True, check=False, timeout=240
    )


WAYS: dict[str, list[str]] = {
    "launcher train": [command("launcher"), "train"],
    "launcher train --processes 1": [command("launcher"), "train", "--processes", "1"],
    "python -m launcher": [sys.executable, "-m", "launcher", "train"],
    "accelerate launch": [command("accelerate"), "launch", "--cpu", "--num_processes", "1", "-m", "launcher", "train"],
    "torchrun": [command("torchrun"), "--standalone", "--nproc-per-node", "1", "-m", "launcher", "train"],
}
WAYS_TO_TWO = {
    "launcher train": [command("launcher"), "train", "--processes", "2"],
    "accelerate launch": [
        *(command("accelerate"), "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"),
        *("-m", "launcher", "train"),
    ],
    "torchrun": [command("torchrun"), "--standalone", "--nproc-per-node", "2", "-m", "launcher", "train"],
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("expected") / "run", "train.epochs=2")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_gives_the_same_weights_bit_for_bit(tmp_path: Path, expected: Trained, way: str) -> None:
    done = shell(*WAYS[way], TINY, *SHORT, "--cpu", "--run-dir", "run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert result_of(tmp_path / "run").distance(expected) == 0


def test_what_only_another_rank_finds_wrong_is_said(tmp_path: Path) -> None:
    # as torchrun would start rank 1; that rank 0 found nothing and waits for it is not needed
    names = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LAUNCHER_FAULTS": "nonsense"}
    done = shell(sys.executable, "-m", "launcher", "train", TINY, "--cpu", folder=tmp_path, environment=names)
    assert done.returncode == 2
    assert re.fullmatch(r"rank 1 on \S+: 'nonsense' is no fault; write ACTION@POINT.*\n", done.stderr), done.stderr


@pytest.mark.parametrize("way", WAYS_TO_TWO)
def test_every_way_to_two_processes_trains_the_same(tmp_path: Path, expected: Trained, way: str) -> None:
    done = shell(*WAYS_TO_TWO[way], TINY, *SHORT, "--cpu", "--run-dir", "run", folder=tmp_path, environment=CPU)
    assert done.returncode == 0, done.stderr
    assert "global batch 16 = 2 processes × 8 × 1 accumulated" in done.stdout
    assert done.stdout.count("global batch") == 1
    assert result_of(tmp_path / "run").distance(expected) < 1e-9
    assert (tmp_path / "run" / "logs" / "rank-1.log").exists()


def test_a_script_trains_several_times_in_the_world_that_torchrun_made(tmp_path: Path) -> None:
    (tmp_path / "sweep.py").write_text(
        "import gc, os, launcher\n"
        "for number, rate in enumerate((0.01, 0.02, 0.02, 0.03)):\n"
        f"    said = ['launch.threads=1', 'train={{steps: 4}}', f'optimizer.lr={{rate}}']\n"
        f"    launcher.train({str(TINY)!r}, *said, run_dir=f'runs/{{number}}', cpu=True, output='quiet')\n"
        "    gc.collect()\n"
        "    if os.environ['RANK'] == '0':\n"
        "        print('open files', len(os.listdir('/proc/self/fd')))\n"
    )
    done = shell(command("torchrun"), "--standalone", "--nproc-per-node", "2", "sweep.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *others = re.findall(r"open files (\d+)", done.stdout)
    assert others == [first] * 3
    runs = [result_of(folder) for folder in sorted((tmp_path / "runs").iterdir())]
    assert [max(run.column("lr")) for run in runs] == [0.01, 0.02, 0.02, 0.03]
    assert [run.column("step")[-1] for run in runs] == [4, 4, 4, 4]
    assert runs[1].distance(runs[2]) == 0


def test_an_accelerate_config_never_beats_the_recipe(tmp_path: Path, expected: Trained) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: bf16\nnum_processes: 1\n"
        "num_machines: 1\nmachine_rank: 0\nuse_cpu: true\ndynamo_config: {dynamo_backend: INDUCTOR}\n"
    )
    start: list[str | Path] = [command("accelerate"), "launch", "--config_file", config, "-m", "launcher", "train"]
    done = shell(
        *start,
        TINY,
        *SHORT,
        "--run-dir",
        "run",
        folder=tmp_path,
        environment={"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
    )
    assert done.returncode == 0, done.stderr
    assert "accelerate config says bf16, the recipe no: the recipe's is used" in done.stdout
    assert "accelerate config says dynamo backend INDUCTOR; device.compile is false" in done.stdout
    assert "accelerate config says 4 accumulation steps" in done.stdout
    assert result_of(tmp_path / "run").distance(expected) == 0


def test_accelerate_launch_cpu_with_several_processes_is_explained(tmp_path: Path) -> None:
    start = [command("accelerate"), "launch", "--cpu", "--num_processes", "2", "-m", "launcher", "train"]
    done = shell(*start, TINY, folder=tmp_path)
    assert done.returncode != 0
    assert "asked for several processes on the CPU and started one" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_breakpoint_works_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "from torch import nn\n\nclass Net(nn.Linear):\n    def forward(self, x):\n"
        "        breakpoint()\n        return super().forward(x)\n"
    )
    shutil.copy(TINY.parent / "parts.py", tmp_path)
    net = "{_target_: 'model.py:Net', in_features: 6, out_features: 3, dtype: {_ref_: torch.float64}}"
    (tmp_path / "tiny.yaml").write_text(TINY.read_text().replace('{_target_: "parts.py:Net"}', net))
    done = subprocess.run(
        [command("launcher"), "train", "tiny.yaml", "--cpu"],
        cwd=tmp_path, input="p x.shape\nq\n", capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert "torch.Size([16, 6])" in done.stdout


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "tiny.yaml", "--cpuu"], "launcher: unrecognized arguments: --cpuu; see launcher --help"),
        (["train"], "launcher train: the following arguments are required: RECIPE"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "tiny.yaml", "--processes", "0"], "'0' is not a whole number of at least 1"),
        (["train", "missing.yaml"], "missing.yaml"),
        (["train", "folder"], "folder"),
        (["train", "empty.yaml"], "empty.yaml"),
        (["train", "junk.yaml"], "junk.yaml"),
        (["train", "tiny.yaml", "optimizer"], "optimizer"),
        (["copy", "digits_cn"], "there is no recipe 'digits_cn'; did you mean 'digits_cnn'?"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in (TINY, TINY.parent / "parts.py"):
        shutil.copy(file, tmp_path)
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "junk.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    try:
        code = main(arguments)
    except SystemExit as error:
        code = int(str(error.code))
    printed = capsys.readouterr()
    assert code == 2
    assert message in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_a_mistake_that_only_components_show_is_said_once_by_several_processes(tmp_path: Path) -> None:
    start = [command("launcher"), "train", str(TINY), "--cpu", "--processes", "2", "optimizer.lrr=1"]
    done = shell(*start, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("AdamW takes no 'lrr'; did you mean 'lr'?") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------------- a foreign folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as `pip install` puts it: a wheel's files, away from the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_recipes_travel_in_the_package(tmp_path: Path, installed: Path) -> None:
    run = [sys.executable, "-m", "launcher"]
    environment = {"PYTHONPATH": str(installed)}
    listed = shell(*run, "recipes", folder=tmp_path, environment=environment).stdout
    names = ["custom_model", "digits_cnn", "digits_mlp", "tabular_regression", "text_gpt"]
    assert [line.split()[0] for line in listed.splitlines()] == names
    assert f"{'digits_cnn':<20} Classify 8x8 handwritten digits with a small CNN\n" in listed
    copied = shell(*run, "copy", "digits_cnn", folder=tmp_path, environment=environment).stdout
    assert copied == "digits_cnn.yaml\n\nnext: launcher train digits_cnn.yaml\n"
    assert "#   launcher train digits_cnn.yaml --cpu --processes 2\n" in (tmp_path / "digits_cnn.yaml").read_text()
    again = shell(*run, "copy", "digits_cnn", folder=tmp_path, environment=environment)
    assert (again.returncode, "digits_cnn.yaml exists" in again.stderr) == (2, True)
    assert shell(*run, "copy", "custom_model", folder=tmp_path, environment=environment).returncode == 0
    trained = shell(
        *run, "train", "custom_model/recipe.yaml", "train.epochs=1", "--cpu", folder=tmp_path, environment=environment
    )
    assert trained.returncode == 0, trained.stderr
    where = shell(
        sys.executable, "-c", "import launcher; print(launcher.__file__)", folder=tmp_path, environment=environment
    )
    assert where.stdout.startswith(str(installed))


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"launcher {launcher.__version__}\n"
