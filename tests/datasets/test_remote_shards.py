"""Shards of a hub: what was listed is what is read, once; a server that fails is asked again, then one line says so."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from hub import ADDRESS, Hub, served
from huggingface_hub import constants
from projects import make
from tiers import rounds
from worlds import in_world, killed, train_here
from written_shards import PARTS, RECIPE, SIZES, WRITERS, number_of, written

from launcher.data.sampler import StepSampler
from launcher.datasets import remote_shards
from launcher.datasets.shards import Shards
from launcher.errors import LauncherError
from launcher.world.signals import listening

KEY = "hf_0123456789secretABCDEF"
ALL = list(range(sum(SIZES)))


def files_of(folder: Path) -> dict[str, bytes]:
    return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in sorted(folder.rglob("part-*"))}


def use(url: str, key: str = KEY) -> None:
    """Lets this process ask that server, whatever it has imported before."""
    os.environ.update(HF_ENDPOINT=url, HF_TOKEN=key)
    constants.ENDPOINT = url
    constants.HUGGINGFACE_CO_URL_TEMPLATE = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    huggingface_hub.HfFileSystem.clear_instance_cache()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server with shards of every kind, of which each try of a failed request comes soon."""
    (tmp_path / "data").mkdir()
    for kind in WRITERS:
        written(tmp_path / "data" / kind, kind)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(remote_shards, "WAITS_SECONDS", (0.01, 0.01))
    for name, value in (("HF_ENDPOINT", ""), ("HF_TOKEN", "")):  # put back at the end
        monkeypatch.setenv(name, value)
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        monkeypatch.setattr(constants, name, "")
    with served(files_of(tmp_path / "data")) as hub:
        use(hub.url)
        yield hub


def numbers(data: Shards) -> list[int]:
    return [number_of(data[index]) for index in range(len(data))]


def forget(home: Path) -> None:
    """Removes what was fetched, and leaves the indices."""
    for file in (home / ".cache" / "launcher-data" / "shards").iterdir():
        if re.fullmatch(r"[0-9a-f]{24}\.\w+", file.name) and file.suffix != ".lock":
            file.unlink()


@pytest.mark.parametrize("kind", WRITERS)
def test_shards_of_a_hub_are_those_of_this_machine(kind: str, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    for pattern in (f"{ADDRESS}/{kind}/*.{kind}", f"{ADDRESS}@main/{kind}/part-{{00..04}}.{kind}"):
        data = Shards(pattern)
        assert numbers(data) == ALL
        assert data.plan_notes == ()
    assert len(hub.fetched()) == len(set(hub.fetched()))
    assert set(hub.keys) == {f"Bearer {KEY}"}
    assert capfd.readouterr() == ("", "")


def test_a_branch_that_moves_is_read_as_it_was_listed(hub: Hub, tmp_path: Path) -> None:
    data = Shards(f"{ADDRESS}/jsonl/*.jsonl", mixed=1)
    files = hub.commits[hub.head]
    hub.commit({name: content.replace(b"1", b"2") for name, content in files.items()})
    forget(tmp_path / "home")
    assert numbers(data) == ALL
    assert numbers(Shards(f"{ADDRESS}/jsonl/*.jsonl")) != ALL  # who lists it now


CHANGES: dict[str, tuple[Callable[[dict[str, bytes], str], Any], str]] = {
    "gone": (lambda files, name: files.pop(name), "was listed and is gone; restore it"),
    "another": (lambda files, name: files.update({name: files[name].replace(b"1", b"2")}), "is not what was listed"),
    "longer": (lambda files, name: files.update({name: files[name] + b"1"}), "cannot be fetched: "),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("name", CHANGES)
def test_a_shard_that_is_another_one_now_is_not_read(name: str, kind: str, hub: Hub, tmp_path: Path) -> None:
    data = Shards(f"{ADDRESS}/{kind}/*.{kind}", mixed=1)
    forget(tmp_path / "home")
    change, words = CHANGES[name]
    change(hub.commits[hub.head], f"{kind}/part-04.{kind}")
    assert [number_of(data[index]) for index in ALL[:10]] == ALL[:10]
    with pytest.raises(LauncherError, match=words) as caught:
        data[18]
    assert f"{ADDRESS}/{kind}/part-04.{kind}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_elsewhere_and_changes_is_noticed_without_hashes(tmp_path: Path, hub: Hub) -> None:
    data = Shards(f"file://{tmp_path}/data/jsonl/*.jsonl", mixed=1)
    forget(tmp_path / "home")
    file = tmp_path / "data" / "jsonl" / "part-04.jsonl"
    file.write_bytes(file.read_bytes().replace(b"1", b"2"))
    with pytest.raises(LauncherError, match="it was changed since it was listed"):
        data[18]


class Failing:
    """Fails the first times that a thing is asked for."""

    def __init__(self, how: Any, kind: str, times: int = 1):
        self.how, self.kind, self.times, self.count = how, kind, times, 0

    def __call__(self, kind: str, path: str) -> Any:
        self.count += kind == self.kind
        return self.how if kind == self.kind and self.count <= self.times else None


@rounds(
    "how, kind",
    plain=[(500, "info"), (503, "tree"), (500, "resolve"), ("reset", "tree"), ("cut", "body"), (0.1, "resolve")],
    long=[("reset", "resolve"), ("reset", "info"), (429, "tree")],
)
def test_a_server_that_fails_is_asked_again(
    how: Any, kind: str, hub: Hub, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail = Failing(how, kind)
    assert numbers(Shards(f"{ADDRESS}/tar/*.tar")) == ALL
    assert KEY not in "".join(capfd.readouterr()) + caplog.text


@rounds(
    "how, kind",
    plain=[(500, "info"), (500, "resolve")],
    long=[(500, "tree"), ("reset", "info"), ("reset", "resolve")],
)
def test_one_that_goes_on_failing_ends_the_run_with_one_line(how: Any, kind: str, hub: Hub) -> None:
    hub.fail = Failing(how, kind, times=1000)
    with pytest.raises(LauncherError, match=r"hf://datasets/somebody/numbers/tar/.* cannot be fetched: ") as caught:
        numbers(Shards(f"{ADDRESS}/tar/*.tar"))
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    tries = [path for asked, path in hub.asked if asked == kind]
    assert tries.count(tries[0]) >= 1 + len(remote_shards.WAITS_SECONDS)


def test_who_is_asked_to_stop_waits_for_no_server(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_shards, "WAITS_SECONDS", (3600.0, 3600.0))
    hub.fail = Failing(500, "info", times=1000)
    asked = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    with listening():
        asked.start()
        with pytest.raises(LauncherError, match="cannot be fetched"):
            numbers(Shards(f"{ADDRESS}/tar/*.tar"))


@pytest.mark.parametrize("path", ["tar/none-*.tar", "none/*.tar", "tar/none.tar"])
def test_what_a_hub_does_not_have_is_said_at_once(path: str, hub: Hub) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.*\.tar") as caught:
        Shards(f"{ADDRESS}/{path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["offline", "closed"])
def test_without_a_server_what_was_listed_and_fetched_is_read(
    how: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = f"{ADDRESS}/tar/*.tar"
    Shards.prepare(pattern)
    asked = len(hub.asked)
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        use("http://127.0.0.1:9")  # where nobody listens
    huggingface_hub.close_session()
    data = Shards(pattern)
    assert numbers(data) == ALL
    (note,) = data.plan_notes
    assert note.startswith(f"{pattern} cannot be fetched: ")
    assert note.endswith("; read as it was listed before")
    assert KEY not in note
    assert len(hub.asked) == asked
    with pytest.raises(LauncherError, match="cannot be fetched"):
        Shards(f"{ADDRESS}/parquet/*.parquet")  # which was never listed
    huggingface_hub.close_session()


# --- in a run ---

SHARDS = 12  # of one step each
SETTINGS = ("data.train.mixed=1", "train={steps: 24}", "save.every=1 steps")


def here(folder: str, recipe: str, url: str, overrides: tuple[str, ...], faults: str | None = None) -> str:
    """Trains as one rank, asking that server."""
    use(url)
    return train_here(folder, overrides, recipe, faults=faults)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(folder / "model_weights.pth", weights_only=True)
    return weights


@pytest.mark.parametrize("workers", [0, 1])
def test_two_processes_train_on_them_and_resume_without_what_was_read(workers: int, hub: Hub, tmp_path: Path) -> None:
    project = make(tmp_path / "project", RECIPE.replace("PATH", f"'{ADDRESS}/tar/*.tar'"), parts=PARTS)
    written(tmp_path / "data" / "tar", "tar", (4,) * SHARDS)
    hub.commit(files_of(tmp_path / "data"))
    largest = max(len(content) for content in hub.commits[hub.head].values())
    small = f"data.train.cache_gb={2.5 * largest / 1e9}"
    how = (*SETTINGS, small, f"data.workers={workers}")
    local = f"data.train.path={tmp_path}/data/tar/*.tar"
    in_world(2, here, str(tmp_path / "local"), str(project), hub.url, (*SETTINGS, local))
    in_world(2, here, str(tmp_path / "straight"), str(project), hub.url, how)
    assert killed(2, here, str(tmp_path / "killed"), str(project), hub.url, how, "kill@step:20")
    for file in (tmp_path / "home").rglob("*.tar"):
        file.unlink()
    hub.asked.clear()
    begun = max(int(saved.name.removeprefix("step-")) for saved in (tmp_path / "killed" / "checkpoints").glob("step-*"))
    in_world(2, here, str(tmp_path / "killed"), str(project), hub.url, how)
    wanted = needed(f"{tmp_path}/data/tar/*.tar", range(begun, 24))
    known_by = {f"tar/part-{shard:02d}.tar" for shard in (0, SHARDS // 2, SHARDS - 1)}  # whether the data is the same
    assert len(wanted | known_by) < SHARDS
    assert wanted <= set(hub.fetched()) <= wanted | known_by
    one, *others = (weights_of(tmp_path / name) for name in ("straight", "killed", "local"))
    assert all(torch.equal(weight, other[name]) for other in others for name, weight in one.items())
    kept = list((tmp_path / "home").rglob("*.tar"))
    assert sum(file.stat().st_size for file in kept) <= 3.5 * largest
    written_here = [file for name in ("straight", "killed") for file in (tmp_path / name).rglob("*") if file.is_file()]
    assert not [file for file in written_here if KEY.encode() in file.read_bytes()]


def needed(path: str, steps: range) -> set[str]:
    """The shards that these steps read."""
    sampler = StepSampler(Shards(path, mixed=1), global_batch_size=4)
    indices = np.concatenate([share.indices for step in steps for share in sampler.shares(step)])
    return {f"tar/part-{index // 4:02d}.tar" for index in indices.tolist()}
