"""Recipes of a stranger's that try to run a command, overwrite a file, read what is not theirs, or send it away.

Each attack that once succeeded is here, with its kin. What a shell command of theirs would have made is `owned`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import projects
import pytest
from projects import stand_in
from tiers import rounds

import launcher
from launcher.cli.main import main
from launcher.errors import LauncherError, RecipeError, UsageError
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.recipe.masking import masked
from launcher.recipe.policy import Trust, argument_objections, style_objection
from launcher.recipe.remote_paths import foreign_path
from launcher.recipe.targets import find_target
from launcher.world.failure import of_exception

COMMAND = "open('owned','w')"
TOKEN = "hf_" + "a" * 34


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project as the working directory; nothing may have been made in it, or beside it, at the end."""
    folder = tmp_path / "project"
    projects.make(folder)
    (folder / "pyproject.toml").touch()
    monkeypatch.chdir(folder)
    yield folder
    assert not list(tmp_path.rglob("owned*"))


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """What a command ends with and prints."""
    code = main(list(arguments))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line in which a command refuses."""
    code, _, err = told(capsys, *arguments)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert err.isprintable() or err[:-1].isprintable()
    return err


# ---------------------------------------------------------------------- generated code

FEATURES = """
import types
def create_feature_extractor(model, return_nodes=None): exec(str(return_nodes))
def get_graph_node_names(model): exec(str(model))
class DualGraphModule: ...
"""
QUANTIZED = "def resnet50(*, weights=None, quantize=False, **kwargs): ...\ndef quantize_model(model, backend): ..."


@pytest.fixture
def torchvision(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of this name, in the shape that it has where it is installed."""
    for known in [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "transformers", "timm")]:
        monkeypatch.delitem(sys.modules, known)
    folder = project.parent
    getter = "from torch import nn\nclass IntermediateLayerGetter(nn.ModuleDict): ...\ndef handle(**kwargs): ..."
    stand_in(folder, "torchvision.models.feature_extraction", FEATURES)
    stand_in(folder, "torchvision.models._utils", getter)
    stand_in(folder, "torchvision.models.quantization.resnet", QUANTIZED)
    backbone = "from torchvision.models._utils import IntermediateLayerGetter\ndef _validate(**kwargs): ..."
    stand_in(folder, "torchvision.models.detection.backbone_utils", backbone)
    resnet = (
        "from torch import nn\nclass ResNet(nn.Module): ...\ndef resnet18(*, weights=None): ...\ndef conv1x1(a): ..."
    )
    stand_in(folder, "torchvision.models.resnet", resnet)
    vision = "class VisionDataset:\n    def __init__(self, root=None): ...\n"
    stand_in(folder, "torchvision.datasets.vision", vision)
    sets = """
from torchvision.datasets.vision import VisionDataset
class SBU(VisionDataset):
    def __init__(self, root, transform=None, download=True, loader=None): ...
class Hidden(SBU):
    def __init__(self, root, split='x', **kwargs): ...
class DatasetFolder(VisionDataset):
    def __init__(self, root, loader, extensions=None): ...
"""
    stand_in(folder, "torchvision.datasets.sets", sets)
    monkeypatch.syspath_prepend(str(folder / "site"))


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize(
    "name",
    [
        "feature_extraction.create_feature_extractor",
        "feature_extraction.get_graph_node_names",
        "feature_extraction.DualGraphModule",
        "_utils.IntermediateLayerGetter",
        "detection.backbone_utils.IntermediateLayerGetter",
        "quantization.resnet.resnet50",
        "quantization.resnet.quantize_model",
        "resnet.conv1x1",
    ],
)
def test_a_function_beside_a_builder_is_none(name: str) -> None:
    with pytest.raises(LauncherError, match="refused"):
        find_target(f"torchvision.models.{name}", (), Trust((Path.cwd(),)))


@pytest.mark.usefixtures("torchvision")
def test_builders_are_named() -> None:
    for name in ("resnet.resnet18", "resnet.ResNet"):
        find_target(f"torchvision.models.{name}", (), Trust((Path.cwd(),)))


HEADS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, heads, kind="module"):
        super().__init__()
        made = {name: nn.Linear(2, count) for name, count in heads.items()}
        if kind == "module":
            self.heads = nn.ModuleDict(made)
        elif kind == "parameter":
            self.heads = nn.ParameterDict({name: nn.Parameter(torch.ones(2, count)) for name, count in heads.items()})
        else:
            for name, count in heads.items():
                self.register_buffer(name, torch.ones(2, count))
            self.heads = made
            self.last = nn.Linear(2, 2)

    def forward(self, x):
        values = dict(self._buffers) or dict(self.heads.items())
        x = self.last(x) if hasattr(self, "last") else x
        return sum((head(x) if callable(head) else x @ head) for head in values.values())
"""
EVIL_NAMES = [
    f'a" if {COMMAND} else "a',
    f'a"), {COMMAND}, getattr(self, "a',
    "a\\" + '"',
    f"a' if {COMMAND} else 'a",
    f"a\n{COMMAND}",
    f"a){COMMAND}#",
]


def heads(name: str) -> str:
    """An override that gives the model one layer of this name."""
    import json

    return f"model.heads={{{json.dumps(name)}: 3}}"


@pytest.mark.parametrize("kind", ["module", "parameter", "buffer"])
@pytest.mark.parametrize("name", EVIL_NAMES[:3])
def test_export_writes_no_source_of_a_recipe_s_words(
    project: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    (project / "heads.py").write_text(HEADS)
    changes = ["model._target_=heads.py:Net", heads(name.replace(".", "_")), f"model.kind={kind}", "train.epochs=1"]
    assert main(["train", "recipe.yaml", "--cpu", "--quiet", "--run-dir", "run", *changes]) == 0
    capsys.readouterr()
    code, _, err = told(capsys, "export", "run", "--to", "net.pt2")
    assert code != 0
    assert "is a layer's name, of which torch writes Python source" in err
    assert main(["export", "run", "--to", "net.safetensors"]) == 0  # where names are names


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_no_name_that_could_be_code_passes(name: str) -> None:
    from torch import nn

    from launcher.recipe.generated_code import check_names

    inner = nn.ModuleDict({name.replace(".", "_"): nn.Linear(1, 1)})
    with pytest.raises(LauncherError, match="is a layer's name"):
        check_names(nn.Sequential(inner))


@pytest.mark.parametrize("name", ["3x3", "layer-1", "conv 1", "a/b", "größe", "x+y", "class"])
def test_any_plain_name_passes(project: Path, name: str) -> None:
    from torch import nn

    from launcher.recipe.generated_code import check_names

    check_names(nn.ModuleDict({name: nn.Linear(1, 1)}))


def test_compiling_looks_at_names_too(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "heads.py").write_text(HEADS)
    changes = ["model._target_=heads.py:Net", heads(EVIL_NAMES[0]), "device.compile=true"]
    assert "is a layer's name" in refused(capsys, "check", "recipe.yaml", *changes)


# ---------------------------------------------------------------------- paths that are programs


@pytest.mark.parametrize(
    "text",
    [
        "reference://train.csv::https://example.org/refs.json",
        "reference://x",
        "zip://x.csv::./a.zip",
        "filecache::https://example.org/x.csv",
        "simplecache::file://x",
        "memory://x",
        "ftp://example.org/x",
        "http://example.org/x",
        "git://x@y",
        "github://org:repo@/x",
        "sftp://me@host/x",
        "local://x",
        "dask://x",
        "python://x",
        "HTTPS2://x",
        "https://me@example.org/x",
        "https://a/x?u=https://b",
        "data:text/csv;x://",
        "a\nb",
    ],
)
def test_addresses_that_are_refused(text: str) -> None:
    assert foreign_path(text)
    datasets = pytest.importorskip("datasets")
    trust = Trust((Path.cwd(),))
    for arguments in (
        {"path": "csv", "data_files": text},
        {"path": "csv", "data_files": [text]},
        {"path": "csv", "data_files": {"train": ["x.csv", text]}},
        {"path": "csv", "data_dir": text},
    ):
        assert [name for name, _ in argument_objections(datasets.load_dataset, arguments, trust)]


@pytest.mark.parametrize(
    "text",
    ["x.csv", "/data/x.csv", "../x", "data/*.csv", "https://example.org/x.csv", "hf://datasets/a/b/x.csv", "s3://b/k"],
)
def test_addresses_that_are_plain(text: str) -> None:
    assert foreign_path(text) is None


@pytest.mark.parametrize(
    "path",
    ["pandas", "./pandas", "x/../pandas", "hf://datasets/pandas", "hf://datasets/x/../pandas", "generator", "sql"],
)
def test_readers_that_unpickle_in_another_spelling(project: Path, path: str) -> None:
    datasets = pytest.importorskip("datasets")
    (project / "pandas").mkdir()
    (project / "x").mkdir()
    found = argument_objections(datasets.load_dataset, {"path": path}, Trust((Path.cwd(),)))
    assert "path" in [name for name, _ in found]


@pytest.mark.parametrize("path", ["./pandas", "x/../pandas", "pandas/", "pandas/."])
def test_a_folder_named_like_a_reader_is_a_folder(project: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    datasets = pytest.importorskip("datasets")
    import pickle

    (project / "x").mkdir()
    (project / "pandas").mkdir()
    (project / "pandas" / "train.csv").write_text("a,b\n1,2\n")
    (project / "train.pkl").write_bytes(pickle.dumps(Path))
    asked: list[str] = []
    real = datasets.load_dataset

    def spied(path: str, *arguments: Any, **settings: Any) -> Any:
        asked.append(path)
        return real(path, *arguments, **settings)

    monkeypatch.setattr(datasets, "load_dataset", spied)
    from launcher.datasets import HubDataset

    assert len(HubDataset(path)) == 1
    assert asked == [str(project / "pandas")]


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("name", ["SBU", "Hidden"])
@pytest.mark.parametrize("root", ["/home/me/.ssh", "../x", "data/../../x", "~/x", ".git/hooks", "/etc"])
def test_a_download_by_default_is_a_download(name: str, root: str) -> None:
    target = find_target(f"torchvision.datasets.sets.{name}", (), Trust((Path.cwd(),)))
    trust = Trust((Path.cwd(),))
    assert [one for one, _ in argument_objections(target, {"root": root}, trust)] == ["root"]
    assert not list(argument_objections(target, {"root": root, "download": False}, trust))
    assert not list(argument_objections(target, {"root": "data"}, trust))


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize(
    "loader",
    [
        "{_ref_: torchvision.datasets.sets.SBU}",
        "{_target_: torchvision.datasets.sets.SBU, _partial_: true}",
        "{_target_: torchvision.datasets.sets.SBU, _partial_: true, download: false}",
        "{_ref_: datasets.load_dataset}",
        "{_target_: datasets.load_dataset, _partial_: true, path: csv}",
    ],
)
def test_what_arguments_decide_is_not_handed_on(loader: str) -> None:
    pytest.importorskip("datasets")
    define = f"define={{x: {{_target_: torchvision.datasets.sets.DatasetFolder, root: data, loader: {loader}}}}}"
    recipe = load_recipe("recipe.yaml", [define])
    builder = Builder(recipe)
    with pytest.raises(RecipeError, match="what it does depends on its arguments"):
        builder.check()
    with pytest.raises(RecipeError, match="what it does depends on its arguments"):
        builder.build(recipe.define["x"])


@pytest.mark.parametrize(
    "arguments",
    [
        {"_attn_implementation": "someone/kernel"},
        {"attn_implementation": {"": "someone/kernel"}},
        {"text_config": {"_attn_implementation": "someone/kernel"}},
        {"experts_implementation": "someone/kernel"},
        {"_name_or_path": "x/y"},
        {"chat_template": "{{ x }}"},
    ],
)
def test_arguments_that_load_code_by_another_name(
    project: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    for known in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, known)
    configs = "class PretrainedConfig:\n    def __init__(self, **kwargs): ...\n"
    stand_in(project.parent, "transformers.configuration_utils", configs)
    bert = "from transformers.configuration_utils import PretrainedConfig\nclass BertConfig(PretrainedConfig): ...\n"
    stand_in(project.parent, "transformers.models.bert", bert)
    monkeypatch.syspath_prepend(str(project.parent / "site"))
    target = find_target("transformers.models.bert.BertConfig", (), Trust((Path.cwd(),)))
    assert list(argument_objections(target, arguments, Trust((Path.cwd(),))))
    assert style_objection(target, "partial", Trust((Path.cwd(),)))


# ---------------------------------------------------------------------- reading

SHADOW = "root:*:20228:0:99999:7:::\ndaemon:TOPSECRET:20228:0\n"
SECRET_YAML = (
    "apiVersion: v1\nkind: Secret\ndata: {seed: TOPSECRET}\nseed: TOPSECRET\nname: [TOPSECRET]\nextra: 1\nmore: 2\n"
)


@pytest.mark.parametrize("name", ["shadow", "outside.yaml", "missing.yaml", "folder", "fifo.yaml"])
@pytest.mark.parametrize("spelling", ["{folder}/{name}", "../elsewhere/{name}", "link/{name}"])
def test_a_base_outside_of_the_project_is_not_even_looked_at(
    project: Path, capsys: pytest.CaptureFixture[str], name: str, spelling: str
) -> None:
    elsewhere = project.parent / "elsewhere"
    (elsewhere / "folder").mkdir(parents=True)
    (elsewhere / "shadow").write_text(SHADOW)
    (elsewhere / "outside.yaml").write_text("seed: TOPSECRET\n")
    os.mkfifo(elsewhere / "fifo.yaml")
    (project / "link").symlink_to(elsewhere)
    Path("r.yaml").write_text(f"base: {spelling.format(folder=elsewhere, name=name)}\n")
    err = refused(capsys, "check", "r.yaml", "--fast")
    assert "is outside of the recipe's project" in err
    assert "TOPSECRET" not in err


@pytest.mark.parametrize("where", ["pyproject", "site"])
def test_a_base_that_is_named(project: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    shared = project.parent / "shared"
    shared.mkdir()
    (shared / "common.yaml").write_text((project / "recipe.yaml").read_text())
    Path("r.yaml").write_text(f"base: {shared}/common.yaml\n")
    if where == "pyproject":
        Path("pyproject.toml").write_text(f"[tool.launcher]\nbases = ['{shared}']\n")
    else:
        (project.parent / "site.yaml").write_text(f"bases: [{shared}]\n")
        monkeypatch.setenv("LAUNCHER_SITE", str(project.parent / "site.yaml"))
    with pytest.raises(RecipeError) as caught:  # it was read; its files are looked for beside it
        load_recipe("r.yaml")
    assert "parts.py" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"), [("shadow", SHADOW), ("x.txt", "seed: TOPSECRET"), ("k8s.yaml", SECRET_YAML)]
)
def test_what_is_no_recipe_is_not_quoted(
    project: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    Path(name).write_text(text)
    Path("r.yaml").write_text(f"base: {name}\n")
    err = refused(capsys, "check", "r.yaml", "--fast")
    assert "TOPSECRET" not in err
    assert "20228" not in err
    if name == "shadow":
        err = refused(capsys, "check", name, "--fast")
        assert "does not read as a recipe" in err
        assert "20228" not in err


def test_a_place_that_may_not_even_be_asked_is_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text("base: /proc/1/root/x.yaml\n")  # another process's: reading the link is forbidden
    refused(capsys, "check", "r.yaml", "--fast")
    refused(capsys, "check", "recipe.yaml", "data.train={_target_: TextFile, path: /proc/1/root/x.txt}")


@pytest.mark.parametrize("kind", ["fifo", "device", "kernel", "environ", "folder"])
@pytest.mark.parametrize(
    "key",
    [
        *("recipe", "base", "start_from", "export", "weights", "array_file"),
        *("TextFile", "Table", "NumpyArrays", "ImageFolder", "HubDataset"),
    ],
)
def test_what_is_no_file_is_told_in_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], kind: str, key: str
) -> None:
    os.mkfifo("fifo")
    Path("loop").mkdir()
    (Path("loop") / "again").symlink_to(Path("loop").absolute())
    places = {"fifo": "fifo", "device": "/dev/zero", "kernel": "/proc/kmsg", "environ": "/proc/self/environ"}
    path = {**places, "folder": "loop"}[kind]
    if key in ("recipe", "export"):
        arguments = ["check", path] if key == "recipe" else ["export", path, "--to", "x.pth"]
    elif key == "base":
        Path("r.yaml").write_text(f"base: {path}\n")
        arguments = ["check", "r.yaml"]
    elif key == "array_file":
        arguments = ["check", "recipe.yaml", "--array-file", path]
    elif key in ("start_from", "weights"):
        section = {"start_from": "train", "weights": "data"}[key]
        arguments = ["check", "recipe.yaml", f"{section}.{key}={path}"]
    else:
        pytest.importorskip({"Table": "pyarrow", "ImageFolder": "PIL", "HubDataset": "datasets"}.get(key, "torch"))
        argument = {"ImageFolder": "root", "NumpyArrays": "files"}.get(key, "path")
        rest = ", target: a" if key == "Table" else ""
        arguments = ["check", "recipe.yaml", f"data.train={{_target_: {key}, {argument}: {path}{rest}}}"]
    refused(capsys, *arguments)


@pytest.mark.parametrize(
    "value",
    [
        "postgres://bob:hunter2@db/x",
        "http://user:hunter2@proxy/",
        "https://example.org/hunter2",
        "bob@host:/hunter2",
        "/a/hunter2\n/b",
        f"/x/{TOKEN}",
        "/x/password=hunter2",
        "hunter2",
        "s3://bucket/hunter2",
    ],
)
@pytest.mark.parametrize(
    "text",
    ["define={x: '${env.DOOR}'}", "define={a: '${env.DOOR}', x: '${define.a}/y'}", "define={x: ['data/${env.DOOR}']}"],
)
def test_the_environment_gives_paths_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str, text: str
) -> None:
    monkeypatch.setenv("DOOR", value)
    if value == "hunter2" and "data/" in text:
        return  # a word in a path
    code, out, err = told(capsys, "show", "recipe.yaml", text)
    assert code == 2
    assert "hunter2" not in out + err
    assert TOKEN not in out + err


@pytest.mark.parametrize(
    "define",
    [
        "{url: 'https://example.org/?d=${env.DOOR}'}",
        "{a: '${env.DOOR}', url: 'https://example.org/?d=${define.a}'}",
        "{a: '${env.DOOR}', b: {c: '${define.a}'}, url: 'https://example.org/${define.b.c}'}",
        "{a: 'https:/', url: '${define.a}/example.org${env.DOOR}'}",
        "{a: '${env.DOOR}', url: 'me@example.org:${define.a}'}",
        "{t: {_target_: parts.py:Points}, url: '${define.t.address}${env.DOOR}'}",
        "{a: '${env.DOOR}/${train.steps}', url: 'https://example.org${define.a}'}",
    ],
)
def test_the_environment_is_sent_nowhere(monkeypatch: pytest.MonkeyPatch, define: str) -> None:
    monkeypatch.setenv("DOOR", "/home/bob")
    with pytest.raises(RecipeError, match="the environment"):
        load_recipe("recipe.yaml", [f"define={define}"])


@pytest.mark.parametrize("name", ["MYSQL_PWD", "PGPASSFILE", "SENTRY_DSN", "SLACK_WEBHOOK", "AWS_SECRET_ACCESS_KEY"])
def test_variables_that_hold_secrets(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "/a/b")
    with pytest.raises(RecipeError, match="looks like a secret"):
        load_recipe("recipe.yaml", [f"define={{x: '${{env.{name}}}'}}"])


def test_no_server_is_asked_before_the_rehearsal(
    server: tuple[str, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    address, asked = server
    monkeypatch.setenv("HF_ENDPOINT", f"http://{address}")
    files = f"'https://{address}/x.csv'"
    data = f"data.train={{_target_: datasets.load_dataset, path: csv, split: train, data_files: {files}}}"
    for stop in ("--fast", "--components"):
        assert told(capsys, "check", "recipe.yaml", data, stop)[0] == 0
    builder = Builder(load_recipe("recipe.yaml", [data]))
    assert list(builder.reached()) == [("data.train", address)]
    assert asked == []


# ---------------------------------------------------------------------- one's own files

TOOL = "def sh(cmd: str = ''):\n    open('owned', 'w')\n"


@pytest.mark.parametrize("name", ["deep/proj/utils.py:sh", "utils.py:sh", "utils.sh", "deep.proj.utils.sh"])
def test_a_recipe_from_elsewhere_calls_nothing_of_the_working_directory(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for folder in (project / "deep" / "proj", project):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "utils.py").write_text(TOOL)
    text = f"{projects.RECIPE}\ndefine: {{x: {{_target_: {name}, cmd: touch owned}}}}\n".replace(
        "parts.py:Net", "Linear"
    )
    text = text.replace("model: {_target_: Linear}", "model: {_target_: Linear, in_features: 2, out_features: 3}")
    text = text.replace("{_target_: parts.py:Points}", "{_target_: Digits, split: train}")
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (downloads / "r.yaml").write_text(text)
    assert "refused" in refused(capsys, "check", str(downloads / "r.yaml"))


def test_own_code_that_the_project_names(project: Path, tmp_path: Path) -> None:
    (project / "src").mkdir()
    (project / "src" / "tool.py").write_text("def made(width: int = 3): return width\n")
    (project / "other.py").write_text("def made(): return 1\n")
    (project / "pyproject.toml").write_text("[tool.launcher]\ncode = ['src', 'parts.py']\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    recipe = elsewhere / "r.yaml"
    recipe.write_text(f"{projects.RECIPE}\ndefine: {{x: {{_target_: src/tool.py:made}}, y: {{_target_: tool.made}}}}\n")
    assert Builder(load_recipe(recipe)).check() == 6
    recipe.write_text(f"{projects.RECIPE}\ndefine: {{x: {{_target_: other.py:made}}}}\n")
    with pytest.raises(RecipeError, match="is not in your project, which"):
        load_recipe(recipe)
    (elsewhere / "linked.py").symlink_to(project / "other.py")
    recipe.write_text(f"{projects.RECIPE}\ndefine: {{x: {{_target_: linked.py:made}}}}\n")
    with pytest.raises(RecipeError, match=r"is not in your project \(a link leads to .*other\.py\), which"):
        load_recipe(recipe)


@pytest.mark.parametrize("place", ["sticky", "downloads", "home"])
def test_what_lies_beside_a_recipe_in_anybody_s_folder_is_nobody_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    home = tmp_path / "home"
    folder = {"sticky": tmp_path / "tmp", "downloads": home / "Downloads", "home": home}[place]
    (folder / "below").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(folder)
    if place == "sticky":
        folder.chmod(0o1777)
    (folder / "below" / "utils.py").write_text(TOOL)
    (folder / "r.yaml").write_text(f"{projects.RECIPE}\ndefine: {{x: {{_target_: below/utils.py:sh}}}}\n")
    (folder / "parts.py").write_text(projects.PARTS)
    with pytest.raises(RecipeError, match=r"below/utils\.py' is refused: it is not in your project"):
        load_recipe("r.yaml")


def test_own_code_is_named_with_its_arguments_before_it_is_imported(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "bad.py").write_text("raise SystemExit('imported')\n")
    define = "define={x: {_target_: bad.py:sh, cmd: touch x, n: [1, null]}, y: {_ref_: bad.py:y}, z: {_target_: bad.f}}"
    code, out, _ = told(capsys, "check", "recipe.yaml", "--fast", define)
    lines = [line for line in out.splitlines() if line.startswith("own code")]
    assert code == 0
    assert sorted(lines) == [
        "own code     data.train: parts.py:Points()",
        "own code     define.x: bad.py:sh(cmd='touch x', n=[1, null])",
        "own code     define.y: bad.py:y",
        "own code     define.z: bad.f()",
        "own code     model: parts.py:Net()",
    ]
    code, out, err = told(capsys, "train", "recipe.yaml", "--cpu", define)
    assert code == 2
    assert "own code   define.x: bad.py:sh(cmd='touch x'" in out
    assert "imported" in err


# ---------------------------------------------------------------------- secrets


SAVED = ("evaluate run --cpu", "predict run --cpu --data test --to outputs.jsonl", "export run --to net.safetensors")


@rounds(
    "command",
    plain=["train recipe.yaml --cpu", SAVED[2], "submit recipe.yaml --cpu"],
    long=["resume run --cpu", *SAVED[:2], "data recipe.yaml --seconds 0"],
)
def test_each_command_names_own_code_before_it_imports_it(
    project: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    test = "data.test={_target_: parts.py:Points}"
    if "run" in command.split():
        assert main(["train", "recipe.yaml", "--cpu", "--quiet", "--run-dir", "run", test]) == 0
        sys.modules.pop("parts")
    with (project / "parts.py").open("a") as file:
        file.write("\nprint('it is imported', flush=True)\nraise ValueError('so far')\n")
    capsys.readouterr()
    main(command.split())
    printed = capsys.readouterr()
    lines = (printed.out + printed.err).splitlines()
    named = next(number for number, line in enumerate(lines) if line.startswith("own code"))
    imported = [number for number, line in enumerate(lines) if "it is imported" in line or "so far" in line]
    assert all(number > named for number in imported), lines
    assert imported or "is finished" in lines[-1]


@pytest.mark.parametrize(
    "secret",
    [TOKEN, "sk-" + "b" * 40, "https://bob:hunter2pw@example.org", "ghp_" + "c" * 36, "AKIA" + "D" * 16],
)
def test_secrets_are_masked_wherever_they_are_copied(project: Path, secret: str) -> None:
    (project / "failing.py").write_text("# not yet\n")
    for words in (
        ["init", "-q"],
        ["add", "failing.py"],
        ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c"],
    ):
        subprocess.run(["git", *words], cwd=project, check=True)
    (project / "failing.py").write_text(
        f"from parts import Net as Good\nclass Net(Good):\n    def forward(self, x):\n        print('T', '{secret}')\n"
        f"        raise ValueError('GET {secret} failed')\n"
    )
    command = ["train", "recipe.yaml", "--cpu", "--json", "--run-dir", "run", "model._target_=failing.py:Net"]
    source = {**os.environ, "PYTHONPATH": str(Path(launcher.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "launcher", *command],
        cwd=project,
        env=source,
        capture_output=True,
        text=True,
        check=False,
    )
    hidden = secret.removeprefix("https://").partition("@")[0]
    assert done.returncode == 1
    assert "***" in done.stderr
    assert hidden not in done.stderr
    kept = [file for file in Path("run").rglob("*") if file.is_file()]
    assert {"failure.json", "events.jsonl", "environment.json", "rank-0.log"} <= {file.name for file in kept}
    for file in kept:
        assert hidden.encode() not in file.read_bytes(), file
    assert "***" in Path("run/environment.json").read_text()
    with pytest.raises(ValueError, match="x") as caught:
        raise ValueError(f"x {secret}")
    assert hidden not in of_exception(caught.value).traceback


def test_secrets_are_masked_in_what_check_says(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "failing.py").write_text(f"def made():\n    raise ValueError('{TOKEN}')\n")
    err = refused(capsys, "check", "recipe.yaml", "model={_target_: failing.py:made}")
    assert TOKEN not in err
    assert "hf_***" in err


def test_a_private_key_is_masked_whole_and_long_lines_cost_little() -> None:
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\n-----END OPENSSH PRIVATE KEY-----"
    assert "b3Blb" not in masked(f"x\n{key}\ny")
    assert masked(f"x\n{key}\ny").endswith("\ny")
    for text in ("hf_" * 3000, "a://" * 3000, "eyJaaaaaaaaa-" * 3000, "a.b" * 3000):
        assert masked(text) == text


# ---------------------------------------------------------------------- arguments by their types

TYPES = """
import enum, pathlib
from dataclasses import dataclass
from typing import NamedTuple
import torch
from parts import Net as Good

class Act(enum.Enum):
    RELU = "relu"
    GELU = "gelu"

@dataclass
class Inner:
    depth: int = 1
    act: Act = Act.RELU

@dataclass
class Cfg:
    width: int
    inner: Inner = None
    where: pathlib.Path = pathlib.Path(".")

class Point(NamedTuple):
    x: int
    y: int = 0

class Net(Good):
    def __init__(self, act: Act = Act.RELU, cfg: Cfg | None = None, root: pathlib.Path | None = None,
                 size: tuple[int, int] = (1, 1), kind: type = object, point: Point | None = None,
                 many: list[Act] = [], free=None, text: str | pathlib.Path = "") -> None:
        super().__init__()
        self.got = dict(act=act, cfg=cfg, root=root, size=size, kind=kind, point=point, many=many, text=text)
"""


@pytest.fixture
def types(project: Path) -> None:
    (project / "typed.py").write_text(TYPES)


def net(*changes: str) -> Builder:
    return Builder(load_recipe("recipe.yaml", ["model._target_=typed.py:Net", *changes]))


@pytest.mark.usefixtures("types")
@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("act=GELU", "Act.GELU"),
        ("act=gelu", "Act.GELU"),
        ("many=[RELU, gelu]", "[<Act.RELU: 'relu'>, <Act.GELU: 'gelu'>]"),
        ("root=data/x", "data/x"),
        ("size=[2, 3]", "(2, 3)"),
        ("text=data", "data"),
        ("kind={_ref_: torch.nn.Linear}", "<class 'torch.nn.modules.linear.Linear'>"),
        ("point={x: 3}", "Point(x=3, y=0)"),
        ("cfg={width: 8}", "Cfg(width=8, inner=None, where=PosixPath('.'))"),
        (
            "cfg={width: 8, inner: {depth: 2, act: GELU}, where: a/b}",
            "Cfg(width=8, inner=Inner(depth=2, act=<Act.GELU: 'gelu'>), where=PosixPath('a/b'))",
        ),
    ],
)
def test_an_argument_is_what_it_is_annotated_with(change: str, shown: str) -> None:
    recipe = load_recipe("recipe.yaml", ["model._target_=typed.py:Net", f"model.{change}"])
    builder = Builder(recipe)
    builder.check()
    got = builder.build(recipe.model).got
    assert str(got[change.partition("=")[0]]) == shown
    assert not isinstance(got["act"], str)
    assert got["root"] is None or isinstance(got["root"], Path)


@pytest.mark.usefixtures("types")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("act=swish", "Net expects Act, one of RELU, GELU"),
        ("act=3", "Net expects Act, one of RELU, GELU"),
        ("many=[RELU, swish]", "Net expects a list, each Act, one of RELU, GELU"),
        ("root=3", "does not fit: Net expects"),
        ("size=[1, 2, 3]", "Net expects a list of 2"),
        ("size=3", "Net expects a list of 2"),
        ("kind=Linear", "Net expects a class; write {_ref_: Linear}"),
        ("kind={_target_: torch.nn.Linear, in_features: 1, out_features: 1}", "Net expects a class"),
        ("cfg={widht: 8}", "Cfg takes no 'widht'; did you mean 'width'?"),
        ("cfg={}", "Cfg needs 'width'"),
        ("cfg={width: wide}", "width: 'wide' does not fit: Cfg expects a whole number"),
        ("cfg={width: 8, inner: {act: swish}}", "act: 'swish' does not fit: Inner expects Act, one of RELU, GELU"),
        ("cfg=small", "Net expects a Cfg, {width: …, inner: …, where: …}"),
    ],
)
def test_an_argument_that_is_something_else_is_refused(change: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        net(f"model.{change}").check()
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_mapping_becomes_no_object_of_a_listed_class(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for known in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, known)
    configs = "from dataclasses import dataclass\nclass PretrainedConfig: ...\n"
    stand_in(project.parent, "transformers.configuration_utils", configs)
    bert = (
        "from dataclasses import dataclass\nfrom transformers.configuration_utils import PretrainedConfig\n"
        "@dataclass\nclass BertConfig(PretrainedConfig):\n    kernel: str = ''\n"
    )
    stand_in(project.parent, "transformers.models.bert", bert)
    monkeypatch.syspath_prepend(str(project.parent / "site"))
    (project / "typed.py").write_text(
        "from parts import Net as Good\nfrom transformers.models.bert import BertConfig\n"
        "class Net(Good):\n    def __init__(self, cfg: BertConfig):\n        super().__init__()\n"
    )
    with pytest.raises(RecipeError, match="does not fit: Net expects a BertConfig"):
        net("model.cfg={kernel: someone/kernel}").check()
    net("model.cfg={_target_: transformers.models.bert.BertConfig, kernel: x}").check()


@pytest.mark.usefixtures("types")
def test_none_as_python_spells_it_is_asked_about(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = told(capsys, "check", "recipe.yaml", "--fast", "model._target_=typed.py:Net", "model.free=None")
    assert "model.free: 'None' is a word of four letters here; did you mean null?" in out


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("{'*.bias': {weight_dacay: 0}}", "SGD takes no 'weight_dacay'; did you mean 'weight_decay'?"),
        ("{'*.bias': {lr: fast}}", "'fast' does not fit: SGD expects a number"),
        ("{'*.bias': {momentum: [1]}}", "does not fit: SGD expects a number"),
        ("{'*.bias': {betas: [0.9, 0.9]}}", "SGD takes no 'betas'"),
        ("{'*.bias': {params: 3}}", "SGD takes no 'params'"),
    ],
)
def test_settings_of_groups_are_those_of_the_optimizer(groups: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Builder(load_recipe("recipe.yaml", [f"optimizer._groups_={groups}"])).check()
    assert message in str(caught.value)
    assert "optimizer._groups_" in str(caught.value)


def test_settings_of_groups_of_an_optimizer_that_a_function_makes(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "made.py").write_text("from torch.optim import SGD\ndef made(params):\n    return SGD(params, 0.1)\n")
    changes = ["optimizer={_target_: made.py:made, _groups_: {'*.bias': {weight_dacay: 0}}}"]
    assert "SGD has no setting 'weight_dacay'; did you mean 'weight_decay'?" in refused(
        capsys, "check", "recipe.yaml", *changes
    )


def test_tool_launcher_lists_are_paths() -> None:
    Path("pyproject.toml").write_text("[tool.launcher]\ncode = 'src'\n")
    with pytest.raises(UsageError, match=r"tool\.launcher\.code must be a list of files and folders"):
        load_recipe("recipe.yaml")
