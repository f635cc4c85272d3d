"""What people type: every way in does the same run, and bad input ends in one line."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from places import ROOT, SHIPPED
from worlds import TINY, Trained, result_of, train

import launcher
from launcher.cli.main import GROUPS, main, parser
from launcher.errors import RecipeError
from launcher.recipe.keys import all_keys
from launcher.recipe.load import load_recipe

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
    assert re.fullmatch(r"rank 1 on \S+: 'nonsense' is not a fault; write ACTION@POINT.*\n", done.stderr), done.stderr


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
    assert "the debugger was left with q, which ends the run; c continues it" in done.stderr


def test_breakpoint_in_two_processes_is_rank_0_s(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "from torch import nn\n\nclass Net(nn.Linear):\n    has_stopped = False\n    def forward(self, x):\n"
        "        if len(x) == 8 and not Net.has_stopped:\n"  # a rank's share: what is only tried has fewer
        "            Net.has_stopped = True\n            breakpoint()\n        return super().forward(x)\n"
    )
    shutil.copy(TINY.parent / "parts.py", tmp_path)
    net = "{_target_: 'model.py:Net', in_features: 6, out_features: 3, dtype: {_ref_: torch.float64}}"
    (tmp_path / "tiny.yaml").write_text(TINY.read_text().replace('{_target_: "parts.py:Net"}', net))
    process = subprocess.Popen(
        [command("launcher"), "train", "tiny.yaml", "--cpu", "--processes", "2", "device.timeout=5 seconds", *SHORT],
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        told = "rank 0 has the terminal; rank 1 passes over breakpoint() and waits for it without a timeout\n"
        said = list(itertools.takewhile(lambda line: line != told, process.stdout))
        time.sleep(7)  # longer than device.timeout
        output, _ = process.communicate("p x.shape\nc\n", timeout=240)
    assert process.returncode == 0, "".join(said) + output
    assert told not in output
    assert output.count("torch.Size([8, 6])") == 1
    assert "model.py(9)forward()" in output


@pytest.mark.parametrize("name", ["runs", "sweep"])
def test_a_package_that_can_be_called_is_there_in_a_fresh_process(tmp_path: Path, name: str) -> None:
    code = f"import launcher; it = launcher.{name}; from launcher import {name}; print(callable(it), {name} is it)"
    assert shell(sys.executable, "-c", code, folder=tmp_path).stdout == "True True\n"


def test_a_shipped_recipe_that_was_copied_is_meant(tmp_path: Path) -> None:
    shutil.copy(ROOT / "recipes" / "digits_mlp.yaml", tmp_path)
    done = subprocess.run(
        [command("launcher"), "train", "digits_mlp"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "digits_mlp: does not exist; did you mean 'digits_mlp.yaml'?\n"


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "tiny.yaml", "--cpuu"], "launcher train: there is no --cpuu; did you mean --cpu?"),
        (["train", "tiny.yaml", "--proceses=2"], "launcher train: there is no --proceses; did you mean --processes?"),
        (["train", "tiny.yaml", "--lr", "3"], "there is no --lr; a key of the recipe is written optimizer.lr=VALUE"),
        (["train", "tiny.yaml", "--max-epochs=3"], "a key of the recipe is written train.epochs=3"),
        (["train", "tiny.yaml", "optimizer.lr", "=", "3"], "'=' is alone; write an override as one word"),
        (["report", "run", "--output", "page.html"], "launcher report: there is no --output; did you mean --to?"),
        (["train", "tiny.yaml", "--xy"], "launcher train: there is no --xy; see launcher train --help"),
        (["show", "run@7"], "run: there is no such run or folder"),
        (["train", "junk.yaml"], "junk.yaml: is not a text file; name a recipe, which is YAML"),
        (["runs", "--frobnicate"], "launcher runs: there is no --frobnicate"),
        (["help", "tain"], "there is no command 'tain'; did you mean 'train'? See launcher --help"),
        (["train", "tiny.yaml", "--until", "101%"], "'101%' is more than the whole run; write at most 100%"),
        (["explain", "trian.epohcs"], "trian.epohcs: a recipe has no such key; did you mean 'train.epochs'?"),
        (["explain", "Tabel"], "did you mean 'Table'?"),
        (["explain", "launcher.models.ConvNt"], "did you mean 'launcher.models.ConvNet'?"),
        (["runs", "best"], "best: by which metric? Write `launcher runs best accuracy`"),
        (["runs", "best", "loss:low"], "loss:low: write loss:min or loss:max"),
        (["train", "digits_cnn"], "`launcher copy digits_cnn` puts it here"),
        (["train", "digits_cnn.yaml"], "`launcher copy digits_cnn` puts it here"),
        (["logs", "nothing"], "nothing: there is no such run or folder; there are none in runs"),
        (["resume", "latest"], "latest: there is no such run or folder; there are none in runs"),
        (["evaluate", "nothing"], "nothing: there is no such run or folder; there are none in runs"),
        (
            ["show", "tiny.yaml", "train.epochs=1", "train.steps=2"],
            "train.epochs=1 and train.steps=2 both say how",
        ),
        (
            ["train", "tiny.yaml", "train.time=1 hour", "a=1", "train.steps=2"],
            "train.time=1 hour and train.steps=2",
        ),
        (["sweep", "tiny.yaml", "train.epochs=1", "train.steps=2", "seed=0,1"], "both say how long a run is; keep one"),
        (["train"], "launcher train: the following arguments are required: RECIPE"),
        (["trian"], "launcher: there is no command 'trian'; did you mean 'train'?"),
        (["train", "tiny.yaml", "--processes", "0"], "'0' is not a whole number of at least 1"),
        (["train", "missing.yaml"], "missing.yaml"),
        (["train", "folder"], "folder"),
        (["train", "empty.yaml"], "empty.yaml"),
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
    names = sorted(path.parent.name if path.stem == "recipe" else path.stem for path in SHIPPED)
    assert [line.split()[0] for line in listed.splitlines()] == names
    assert f"{'digits_cnn':<20} Classify 8x8 handwritten digits with a small CNN\n" in listed
    copied = shell(*run, "copy", "digits_cnn", folder=tmp_path, environment=environment).stdout
    assert copied == "digits_cnn.yaml\n\nnext: launcher train digits_cnn.yaml\n"
    assert "#   launcher train digits_cnn.yaml --cpu --processes 2\n" in (tmp_path / "digits_cnn.yaml").read_text()
    again = shell(*run, "copy", "digits_cnn", folder=tmp_path, environment=environment)
    assert (again.returncode, "digits_cnn.yaml exists" in again.stderr) == (2, True)
    assert (
        "next: launcher train images_mixup/recipe.yaml"
        in shell(*run, "copy", "images_mixup", folder=tmp_path, environment=environment).stdout
    )
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
    for flag in ("--version", "-v", "-V"):
        with pytest.raises(SystemExit):
            main([flag])
        assert capsys.readouterr().out == f"launcher {launcher.__version__}\n"


# ---------------------------------------------------------------------- help


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"]])
def test_the_help_shows_every_command_once_in_groups(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    listed = re.findall(r"^  ([a-z-]+)  +\S", shown, re.MULTILINE)
    assert sorted(listed) == sorted(set(parser().parsers) - {"job"})
    assert re.findall(r"^([\w ]+):$", shown, re.MULTILINE) == list(GROUPS)


def test_help_of_a_command_tells_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["help", "resume"])
    assert "--from best|STEP" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("lr=3", "optimizer.lr"),
        ("learning_rate=3", "optimizer.lr"),
        ("epochs=3", "train.epochs"),
        ("data.batch_size=4", "data.global_batch_size"),
        ("train.gradient_accumulation=4", "data.micro_batch_size"),
        ("train.lr=4", "optimizer.lr"),
        ("num_workers=4", "data.workers"),
        ("find_unused_parameters=true", "device.ddp.find_unused_parameters"),
        ("device.amp=true", "device.precision"),
        ("data.suffle=false", "shuffle"),
    ],
)
def test_a_key_in_the_wrong_place_or_by_another_name_is_understood(
    override: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--fast", str(TINY), override]) == 2
    assert f"unknown key; did you mean '{meant}'? Allowed keys: " in capsys.readouterr().err


# ---------------------------------------------------------------------- explain


HAS_VALIDATION = {"data": {"validation": "10% of train"}}
HAS_BEST = {**HAS_VALIDATION, "evaluate": {"best": {"metric": "loss", "mode": "min"}}}
NEEDED: dict[str, dict[str, Any]] = {  # beside the example
    "device.shard": {"device": {"sharding": "full"}},
    "device.reduce": {"device": {"sharding": "full"}},
    "data.batch_sampler": {"data": {"global_batch_size": None}},
    "evaluate.after": HAS_VALIDATION,
    "evaluate.metrics": HAS_VALIDATION,
    "save.final": HAS_BEST,
    "evaluate.early_stop.patience": HAS_BEST,
}


def test_every_key_is_explained_with_an_example_that_reads(tmp_path: Path) -> None:
    """Each is read in a recipe that is right otherwise."""
    least = {
        "data": {"train": {"_target_": "launcher.datasets.Digits"}, "global_batch_size": 8},
        "model": {"_target_": "launcher.models.MLP", "inputs": 64, "outputs": 10},
        "optimizer": {"_target_": "SGD", "lr": 0.1},
    }
    for name in ("my_data", "my_model", "my_task"):
        (tmp_path / f"{name}.py").write_text("collate = Net = step = count = adapt = after = len\n")
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**least, "train": {"steps": 10}}))
    np.save(tmp_path / "weights.npy", np.ones(1))
    for entry in all_keys().values():
        assert entry.text.endswith((".", "…")) or re.fullmatch(r"[1-7]: .*", entry.text), entry
        if entry.kind == "section":
            continue
        needed = joined(least, NEEDED.get(entry.key, {}))
        assert entry.example, f"{entry.key} has no example in launcher/recipe/keys.py"
        example = yaml.safe_load(entry.as_yaml)
        length = {} if entry.key in ("train.epochs", "train.steps", "train.time") else {"train": {"steps": 10}}
        text = yaml.safe_dump({"base": "base.yaml"} if entry.key == "base" else joined(joined(needed, length), example))
        (tmp_path / "recipe.yaml").write_text(text)
        told = wrong_with(tmp_path / "recipe.yaml", entry.key)
        assert not told, f"{entry.key}: {told}"


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    both = {key: joined(first[key], value) for key, value in second.items() if isinstance(first.get(key), dict)}
    replaced = {key: value for key, value in second.items() if key not in both or "_target_" in value}
    return {**first, **both, **replaced}


def wrong_with(recipe: Path, key: str) -> str:
    """What reading says about a key, or what lies in it; an example alone may lack what belongs to it."""
    try:
        load_recipe(recipe)
    except RecipeError as error:
        return "; ".join(str(problem) for problem in error.problems if problem.path.startswith(key))
    return ""


def test_explain_knows_torch_s_classes_and_keys_beside_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    from launcher.recipe.component_syntax import OPTIONS

    for name in {key for options in OPTIONS.values() for key in options}:
        assert main(["explain", name]) == 0
        assert capsys.readouterr().out.startswith(f"{name}, beside the _target_ of ")
    for name, slot, argument in [
        ("AdamW", "optimizer", "betas"),
        ("ReduceLROnPlateau", "scheduler", "patience"),
        ("CrossEntropyLoss", "loss", "label_smoothing"),
        ("Linear", "model", "in_features"),
    ]:
        assert main(["explain", name]) == 0
        printed = capsys.readouterr().out
        assert printed.splitlines()[0].endswith(f"{name}, for {slot}")
        assert f"\n  {argument} " in printed
    for name in ("AdamW", "MulticlassAccuracy"):  # whose docstrings have links to papers
        assert main(["explain", name]) == 0
        assert not re.search(r"\w_(?!\w)", capsys.readouterr().out)


def test_explain_tells_a_key_a_section_and_the_key_of_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "train.clip_grad_norm"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "train.clip_grad_norm",
        "  Largest norm of all gradients together.",
        "  allowed  a number greater than 0 or null; default: null",
        "  example  train: {clip_grad_norm: 1.0}",
    ]
    assert main(["explain", "device.ddp"]) == 0
    assert "  device.ddp.bucket_cap_mb           Size of a bucket" in capsys.readouterr().out
    assert main(["explain", "optimizer.lr"]) == 0
    assert "example  optimizer: {_target_: AdamW, lr: 1e-3}" in capsys.readouterr().out
    assert main(["explain", "max_grad_norm"]) == 0
    assert capsys.readouterr().out.startswith("train.clip_grad_norm\n")
    for name in ("Table", "launcher.datasets.Table"):
        assert main(["explain", name]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith("launcher.datasets.Table(path, target, features=None, classes=None,")
        assert "      regression: Whether a target of whole numbers" in shown
