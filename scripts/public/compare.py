"""Trains public projects by their own scripts and by our recipes, and prints where their losses differ."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent.resolve()
ROOT = HERE.parent.parent


@dataclass(frozen=True)
class Project:
    """What is run of a project.

    Attributes:
        clone: What its clone is called on the command line.
        script: Its own, in the clone.
        arguments: Of the script.
        steps: How many are compared.
        folder: Where in the clone it is started.
        draw: Makes data in the format that it reads; None where the clone has them.
    """

    clone: str
    script: str
    arguments: tuple[str, ...] = ()
    steps: int = 40
    folder: str = "."
    draw: Callable[[Path], None] | None = None


@dataclass
class Compared:
    """A line of the table."""

    name: str
    commit: str
    edits: str
    lines: tuple[int, int]
    theirs: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)

    @property
    def difference(self) -> float:
        """The largest of a step's loss, relative to theirs."""
        return max(abs(a - b) / abs(a) for a, b in zip(self.theirs, self.ours, strict=True))


# ---------------------------------------------------------------------- data in the formats that they read


def digits(folder: Path) -> None:
    """MNIST's files beside the folder: 960 pictures, for 15 steps an epoch."""
    raw = folder.parent / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for kind, count in (("train", 960), ("t10k", 64)):
        labels = random.integers(0, 10, count, dtype=np.uint8)
        pictures = random.integers(0, 120, (count, 28, 28), dtype=np.uint8)
        for number, label in enumerate(labels):
            pictures[number, 2 * label : 2 * label + 6] += 100
        for what, header, values in (
            ("images-idx3", (2051, count, 28, 28), pictures),
            ("labels-idx1", (2049, count), labels),
        ):
            (raw / f"{kind}-{what}-ubyte").write_bytes(np.array(header, ">i4").tobytes() + values.tobytes())


def photographs(folder: Path) -> None:
    """BSDS300's folders."""
    for part in ("train", "test"):
        _pictures(folder / "dataset" / "BSDS300" / "images" / part, 20, (300, 280))


def masked(folder: Path) -> None:
    """Carvana's folders."""
    _pictures(folder / "data" / "imgs", 20, (64, 64))
    masks = folder / "data" / "masks"
    masks.mkdir(parents=True, exist_ok=True)
    for path in (folder / "data" / "imgs").glob("*.png"):
        bright = np.asarray(Image.open(path)).mean(2) > 127
        Image.fromarray(bright.astype(np.uint8) * 255).save(masks / f"{path.stem}_mask.gif")


def tokens(folder: Path) -> None:
    """Characters of nanoGPT's own README, as its `prepare.py` writes them."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    alphabet = sorted(set(text))[:65]
    numbers = np.array([alphabet.index(one) for one in text if one in alphabet], np.uint16)
    made = folder / "data" / "made"
    made.mkdir()
    numbers.tofile(made / "train.bin")
    numbers.tofile(made / "val.bin")
    (made / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 65}))


def _pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")


# ---------------------------------------------------------------------- the projects

NANOGPT = (
    *("--device=cpu", "--compile=False", "--dtype=float32", "--dataset=made", "--eval_iters=1", "--block_size=64"),
    *("--batch_size=12", "--gradient_accumulation_steps=1", "--n_layer=2", "--n_head=2", "--n_embd=64"),
    *("--learning_rate=1e-3", "--min_lr=1e-4", "--beta2=0.99", "--warmup_iters=10", "--lr_decay_iters=40"),
)
MAKEMORE = ("--n-layer=2", "--n-head=2", "--n-embd=32", "--n-embd2=32")
PROJECTS = {
    "mnist": Project("examples", "main.py", ("--no-accel",), 60, "mnist", digits),
    "mnist_rnn": Project("examples", "main.py", (), 60, "mnist_rnn", digits),
    "siamese_network": Project("examples", "main.py", ("--no-accel",), 15, "siamese_network", digits),
    "super_resolution": Project(
        "examples",
        "main.py",
        ("--upscale_factor=2", "--batchSize=4", "--nEpochs=9"),
        20,
        "super_resolution",
        photographs,
    ),
    "nanoGPT": Project("nanoGPT", "train.py", NANOGPT, draw=tokens),
    "minGPT": Project("minGPT", "projects/adder/adder.py"),
    "makemore": Project("makemore", "makemore.py", MAKEMORE),
    "unet": Project("Pytorch-UNet", "train.py", ("--batch-size=2",), 6, draw=masked),
}


def compare(name: str, clone: Path, folder: Path) -> Compared:
    """One project, in a copy of its clone.

    Raises:
        RuntimeError: One of the two did not get through.
    """
    project = PROJECTS[name]
    shutil.copytree(clone, folder, ignore=shutil.ignore_patterns(".git"))
    place = folder / project.folder
    if project.draw:
        project.draw(place)
    recipe, glue = HERE / "recipes" / f"{name}.yaml", HERE / "recipes" / f"{name}.py"
    result = Compared(name, git(clone, "log", "-1", "--format=%h"), edits(clone), (lines(recipe) - 1, lines(glue)))
    losses = place / "losses.json"
    run(place, str(HERE / "theirs.py"), str(project.steps), str(losses), project.script, *project.arguments)
    result.theirs = json.loads(losses.read_text(encoding="utf-8"))
    shutil.copy(recipe, place / "recipe.yaml")
    if glue.exists():
        shutil.copy(glue, place / "glue.py")
    run(
        place,
        "-m",
        "launcher",
        "train",
        "recipe.yaml",
        "--cpu",
        "--run-dir",
        "run",
        *OVERRIDES,
        f"train.steps={project.steps}",
    )
    written = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    result.ours = [line["loss"] for line in written if line["split"] == "train"]
    return result


OVERRIDES = (
    *("seed=0", "data.shuffle=false", "data.workers=0", "track.every=1 steps", "launch.threads=1"),
    "train.start_from=initial.pth",
)


def run(folder: Path, *command: str) -> None:
    """Python in a folder, with this project; what it printed is shown where it fails."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, encoding="utf-8"
    )
    if done.returncode:
        raise RuntimeError("\n".join((done.stdout + done.stderr).strip().splitlines()[-12:]))


def git(clone: Path, *command: str) -> str:
    """What git says of a clone; nothing where it is none."""
    done = subprocess.run(["git", "-C", str(clone), *command], capture_output=True, encoding="utf-8")
    return done.stdout.strip() if done.returncode == 0 else ""


def edits(clone: Path) -> str:
    """How many files of the clone differ from what was published."""
    changed = git(clone, "diff", "HEAD", "--name-only", "--diff-filter=M")
    return str(len(changed.splitlines())) if git(clone, "log", "-1", "--format=%h") else "?"


def lines(path: Path) -> int:
    """Those that say something."""
    return (
        sum(1 for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith('"""'))
        if path.exists()
        else 0
    )


def main() -> int:
    """Compares what the command line names."""
    clones = sorted({project.clone for project in PROJECTS.values()})
    parser = argparse.ArgumentParser(prog="compare_public", description=__doc__)
    parser.add_argument("clones", nargs="+", metavar="CLONE=FOLDER", help=f"of {', '.join(clones)}")
    parser.add_argument("--only", choices=PROJECTS, action="append", help="some of the projects in these clones")
    arguments = parser.parse_args()
    given = dict(one.partition("=")[::2] for one in arguments.clones)
    if strange := [name for name, folder in given.items() if name not in clones or not Path(folder).is_dir()]:
        parser.error(f"not CLONE=FOLDER: {', '.join(strange)}; clones are called {', '.join(clones)}")
    chosen = [
        name for name, project in PROJECTS.items() if project.clone in given and name in (arguments.only or PROJECTS)
    ]
    failed = 0
    print("| project | commit | edits | recipe, own code (lines) | steps | largest relative difference of a loss |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = compare(name, Path(given[PROJECTS[name].clone]).resolve(), Path(folder) / "copy")
            except RuntimeError as error:
                failed += 1
                print(f"{name} failed:\n{error}", file=sys.stderr)
                continue
        size = f"{row.lines[0]}, {row.lines[1]}"
        print(f"| {name} | {row.commit} | {row.edits} | {size} | {len(row.ours)} | {row.difference:.0e} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
