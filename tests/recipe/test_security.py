"""What a recipe may name: an attacker who can write a recipe, and nothing else, runs no command and writes no file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import projects
import pytest
from places import SUPPORT
from projects import stand_in

from launcher.cli.main import main
from launcher.errors import LauncherError, RecipeError, UsageError
from launcher.recipe.build import SLOTS, Builder
from launcher.recipe.load import load_recipe
from launcher.recipe.masking import masked, shape_in
from launcher.recipe.policy import Trust, argument_objections, listed, objection
from launcher.recipe.project import allowed_packages
from launcher.recipe.secrets import holds_secret, is_secret_key
from launcher.recipe.targets import find_target

HOMES = tuple(home for slot in SLOTS for home in slot.homes)
OWN = """
import functools, os, subprocess, sys
from subprocess import Popen
import torch
from torch.optim import AdamW

class Net(torch.nn.Linear):
    pass

def build(width: int) -> Net:
    return Net(width, width)

shell = os.system
bound = functools.partial(os.system, "touch owned")
own = functools.partial(build, width=3)
net = Net(2, 2)
MEANS = (0.5, [0.5], {"a": 1})
modules = {"os": os}
environment = os.environ
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with code of its own, as the working directory; nothing may have been made in it at the end."""
    folder = tmp_path / "project"
    projects.make(folder, mine=OWN)
    monkeypatch.chdir(folder)
    yield folder
    assert not list(tmp_path.rglob("owned*"))


def find(name: str, *allow: str) -> Any:
    """What a name comes to, for a recipe of this project."""
    return find_target(name, HOMES, Trust((Path.cwd(),), allow))


# ---------------------------------------------------------------------- names


def listed_names(kind: str) -> list[str]:
    lines = (SUPPORT / "names" / f"{kind}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("name", listed_names("allowed"))
def test_what_may_be_named(name: str) -> None:
    find(name)


@pytest.mark.parametrize("name", listed_names("refused"))
def test_what_may_not_be_named(name: str) -> None:
    with pytest.raises(LauncherError) as caught:
        find(name)
    assert "\n" not in str(caught.value)
    assert "refused" in str(caught.value) or "have no" in str(caught.value)


@pytest.mark.parametrize(
    "file",
    [subprocess.__file__, "{venv}/torch/hub.py", "../outside.py", "{tmp}/outside.py", "inner/venv/tool.py", "link.py"],
)
def test_files_that_are_not_the_user_s_own(project: Path, file: str) -> None:
    import torch

    (project.parent / "outside.py").write_text("def load(): pass\nclass Popen: pass\n")
    (project / "link.py").symlink_to(project.parent / "outside.py")
    (project / "inner" / "venv").mkdir(parents=True)
    (project / "inner" / "venv" / "pyvenv.cfg").touch()
    (project / "inner" / "venv" / "tool.py").write_text("def load(): pass\n")
    name = file.format(venv=Path(torch.__file__).parent.parent, tmp=project.parent)
    with pytest.raises(LauncherError, match="is refused: it is not in your project"):
        find(f"{name}:load")


def test_refused_packages_are_not_imported(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = project.parent / "site"
    site.mkdir()
    (site / "sinister.py").write_text("import pathlib\npathlib.Path('owned').touch()\n")
    (site / "requests_of_others").mkdir()
    (site / "requests_of_others" / "__init__.py").write_text("import pathlib\npathlib.Path('owned').touch()\n")
    monkeypatch.syspath_prepend(str(site))
    for name in ("sinister.run", "requests_of_others.get", "requests_of_others.inner.get"):
        with pytest.raises(LauncherError, match="is not on the list of what a recipe may name"):
            find(name)


def test_a_name_that_is_refused_is_told_before_own_code_is_imported(project: Path) -> None:
    (project / "first.py").write_text("import pathlib\npathlib.Path('owned').touch()\nNet = dict\n")
    parts = ["model={_target_: first.py:Net}", "data.train={_target_: first.py:Net}", "optimizer={_target_: first.Net}"]
    recipe = load_recipe("recipe.yaml", [*parts, "loss={_target_: os.system}"])
    with pytest.raises(RecipeError, match=r"'os\.system' is refused") as caught:
        Builder(recipe).check()
    assert len(caught.value.problems) == 1


def test_building_judges_again_what_was_never_checked() -> None:
    recipe = load_recipe("recipe.yaml", ["model={_target_: torch.os.system, _args_: [touch owned]}"])
    with pytest.raises(LauncherError, match="the module 'os' is not on the list"):
        Builder(recipe).build(recipe.model)


# ---------------------------------------------------------------------- references to attributes


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("define.net.forward", "'forward' is code, not a value"),
        ("define.net.register_forward_hook", "'register_forward_hook' is code"),
        ("define.net.weight.data.numpy", "'numpy' is code"),
        ("define.net.__class__", "private attributes cannot be referred to"),
        ("define.net._parameters", "private attributes cannot be referred to"),
        ("define.loss.func", "a function has no attribute 'func'"),
        ("define.net.os", "a Net has no attribute 'os'"),
    ],
)
def test_an_attribute_is_never_code(reference: str, message: str) -> None:
    define = "define={net: {_target_: mine.py:Net, _args_: [2, 2]}, loss: {_target_: mine.py:build, _partial_: true}}"
    builder = Builder(load_recipe("recipe.yaml", [define]))
    with pytest.raises(LauncherError, match=message):
        builder.lookup(reference)
    assert builder.lookup("define.net.in_features") == 2


# ---------------------------------------------------------------------- arguments


TRANSFORMERS = """
class PreTrainedModel:
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs): ...
    @classmethod
    def register(cls, config): ...
"""
BERT = """
from transformers.modeling_utils import PreTrainedModel
class BertModel(PreTrainedModel):
    def __init__(self, config=None, **kwargs): ...
    def save_pretrained(self, save_directory): ...
"""


@pytest.fixture
def libraries(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that this environment has not, in the shape that they have where they are installed."""
    for name in ("timm", "transformers", "torchvision"):
        for known in [one for one in sys.modules if one.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, known)
    stand_in(project.parent, "timm.models._factory", "def create_model(model_name, pretrained=False, **kwargs): ...")
    stand_in(project.parent, "timm", "from timm.models._factory import create_model")
    stand_in(project.parent, "transformers.modeling_utils", TRANSFORMERS)
    stand_in(project.parent, "transformers.models.bert", BERT)
    stand_in(project.parent, "transformers.models.rag", BERT)
    stand_in(project.parent, "transformers", "from transformers.models.bert import BertModel")
    vision = "class VisionDataset:\n    def __init__(self, root=None, download=False): ...\n"
    stand_in(project.parent, "torchvision.datasets.vision", vision)
    monkeypatch.syspath_prepend(str(project.parent / "site"))


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    ("component", "argument"),
    [
        ("timm.create_model, model_name: resnet50", None),
        ("timm.create_model, model_name: 'hf-hub:someone/model'", "model_name"),
        ("timm.create_model, model_name: 'HF_hub:someone/model'", "model_name"),
        ("timm.create_model, model_name: resnet50, checkpoint_path: x.pth", "checkpoint_path"),
        ("timm.create_model, model_name: resnet50, pretrained_cfg: {file: x.pth}", "pretrained_cfg"),
        ("timm.create_model, model_name: resnet50, cache_dir: /home", "cache_dir"),
        ("transformers.BertModel.from_pretrained, _args_: [bert-base-uncased], num_labels: 2", None),
        ("transformers.BertModel.from_pretrained, _args_: [x/y], trust_remote_code: true", "trust_remote_code"),
        ("transformers.BertModel.from_pretrained, _args_: [x/y], weights_only: false", "weights_only"),
        ("transformers.BertModel.from_pretrained, _args_: [x/y], cache_dir: /home", "cache_dir"),
        ("transformers.BertModel.from_pretrained, _args_: [x/y], attn_implementation: x/y", "attn_implementation"),
        ("transformers.BertModel.from_pretrained, _args_: ['hf-hub:x/y']", "pretrained_model_name_or_path"),
        ("transformers.BertModel, config: {a: [{trust_remote_code: true}]}", "config"),
        ("transformers.BertModel, backbone: 'hf-hub:x/y', use_pretrained_backbone: true", "use_pretrained_backbone"),
        ("transformers.BertModel.register, config: 1", "_target_"),
        ("transformers.BertModel.save_pretrained, save_directory: /home", "_target_"),
        ("transformers.models.rag.BertModel", "_target_"),
        ("torchvision.datasets.vision.VisionDataset, root: data, download: true", None),
        ("torchvision.datasets.vision.VisionDataset, root: /home/me/images", None),
        ("torchvision.datasets.vision.VisionDataset, root: /home/me/.ssh, download: true", "root"),
        ("torchvision.datasets.vision.VisionDataset, root: data/../../x, download: true", "root"),
        ("torchvision.datasets.vision.VisionDataset, root: ~/x, download: true", "root"),
        ("torchvision.datasets.vision.VisionDataset, root: .git/hooks, download: true", "root"),
    ],
)
def test_arguments_that_load_code_or_write_files(component: str, argument: str | None) -> None:
    recipe = load_recipe("recipe.yaml", [f"define={{x: {{_target_: {component}}}}}"])
    builder = Builder(recipe)
    if argument is None:
        assert builder.check() == 5
        return
    with pytest.raises(RecipeError) as caught:
        builder.check()
    assert argument in [problem.path.removeprefix("define.x.") for problem in caught.value.problems]
    if argument != "_target_":
        assert Builder(recipe, ["timm", "transformers", "torchvision"]).check() == 5


@pytest.mark.usefixtures("libraries")
def test_arguments_are_judged_again_when_they_are_known() -> None:
    code = "class Names:\n    model = 'hf-hub:someone/model'\n    flag = True\n"
    Path("names.py").write_text(code)
    define = (
        "{names: {_target_: names.py:Names}, net: {_target_: timm.create_model, model_name: '${define.names.model}'}}"
    )
    recipe = load_recipe("recipe.yaml", [f"define={define}"])
    builder = Builder(recipe)
    builder.check()  # nothing is built yet
    with pytest.raises(RecipeError, match="a repository or folder can hold code"):
        builder.build(recipe.define["net"])


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"path": "stanfordnlp/imdb", "split": "train"}, None),
        ({"path": "csv", "data_files": "x.csv"}, None),
        ({"path": "pandas", "data_files": "https://example.org/x.pkl"}, "path"),
        ({"path": "sql", "split": "x"}, "path"),
        ({"path": "csv", "cache_dir": "/home"}, "cache_dir"),
        ({"path": "x/y", "trust_remote_code": True}, "trust_remote_code"),
        ({"path": "x/y", "save_infos": True}, "save_infos"),
    ],
)
def test_load_dataset(arguments: dict[str, Any], wrong: str | None) -> None:
    datasets = pytest.importorskip("datasets")
    found = [name for name, _ in argument_objections(datasets.load_dataset, arguments, Trust((Path.cwd(),)))]
    assert found == ([] if wrong is None else [wrong])


# ---------------------------------------------------------------------- the doors


def test_allow_opens_a_package_or_a_module(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LauncherError):
        find("torch.hub.load")
    find("torch.hub.load", "torch.hub")
    find("collections.Counter", "collections")
    with pytest.raises(LauncherError):
        find("torch.os.system", "torch")  # is posix.system
    with pytest.raises(LauncherError):
        find("torchvision_of_others.x", "torchvision")


def test_the_project_s_own_door(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = "recipe.yaml", "define={x: {_target_: collections.Counter}}", "--fast"
    overrides = ["define={x: {_target_: collections.Counter}}"]
    with pytest.raises(RecipeError, match=r"'collections' is not on the list"):
        Builder(load_recipe("recipe.yaml", overrides)).check()
    Path("pyproject.toml").write_text('[tool.launcher]\nallow = ["collections"]\n')
    assert Builder(load_recipe("recipe.yaml", overrides)).check() == 5
    assert allowed_packages(["timm"]) == ("timm", "collections")
    assert main(["check", *recipe]) == 0
    capsys.readouterr()
    assert any(line.endswith("in pyproject.toml: collections") for line in listed(allowed_packages()))
    assert main(["train", *recipe[:2], "--cpu", "optimizer.lrr=1"]) == 2  # train reads it too, and finds only this
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_only_the_working_directory_s_door(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "pyproject.toml").write_text('[tool.launcher]\nallow = ["collections"]\n')
    (project / "inner").mkdir()
    monkeypatch.chdir(project / "inner")
    assert allowed_packages() == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.launcher", "pyproject.toml: cannot be read: "),
        ("[tool.launcher]\nallow = 'timm'", "pyproject.toml: tool.launcher.allow must be a list of packages"),
        ("[tool.launcher]\nallow = [1]", "pyproject.toml: tool.launcher.allow must be a list of packages"),
        ("[tool.launcher]\nallow = ['../x']", "tool.launcher.allow: '../x' is not a package"),
        ("[tool.launcher]\nalow = ['timm']", "tool.launcher has no 'alow'; did you mean 'allow'?"),
        ("[tool]\nlauncher = 3", "pyproject.toml: tool.launcher must be a table"),
    ],
)
def test_a_door_that_is_malformed(text: str, message: str) -> None:
    Path("pyproject.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        allowed_packages()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    Path("pyproject.toml").unlink()
    with pytest.raises(UsageError, match="--allow: 'a b' is not a package"):
        allowed_packages(["a b"])


# ---------------------------------------------------------------------- files that hide modules


@pytest.mark.parametrize("name", ["datasets", "launcher", "random", "torch", "yaml"])
def test_a_file_that_hides_a_module(project: Path, name: str) -> None:
    if name == "datasets":
        pytest.importorskip("datasets")
    (project / f"{name}.py").write_text("class Net:\n    pass\n")
    with pytest.raises(LauncherError) as caught:
        find(f"{name}.py:Net")
    assert str(caught.value).startswith(f"'{name}.py' would hide the module '{name}' of ")
    assert str(caught.value).endswith("; give it another name")


def test_a_neighbour_that_hides_what_is_needed(project: Path) -> None:
    (project / "numpy.py").write_text("raise ZeroDivisionError\n")
    with pytest.raises(LauncherError, match=r"'numpy\.py' would hide the module 'numpy' of "):
        find("mine.py:Net")


def test_a_package_of_the_user_s(project: Path) -> None:
    for folder in ("src/pkg", "src/pkg/nets"):
        (project / folder).mkdir(parents=True)
        (project / folder / "__init__.py").touch()
    (project / "src" / "pkg" / "nets" / "net.py").write_text(
        "from ..shared import WIDTH\nclass Net:\n    width = WIDTH\n"
    )
    (project / "src" / "pkg" / "shared.py").write_text("WIDTH = 3\n")
    net = find("src/pkg/nets/net.py:Net")
    assert (net.__module__, net.width) == ("pkg.nets.net", 3)
    assert find("pkg.nets.net.Net") is net


# ---------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "PASSWORD",
        "passwd",
        "pwd",
        "passphrase",
        "secret",
        "token",
        "api_key",
        "api-key",
        "apikey",
        "API_KEY",
        "secret_key",
        "access_key",
        "private_key",
        "aws_secret_access_key",
        "access_token",
        "auth_token",
        "hf_token",
        "wandb_api_key",
        "client_secret",
        "my_password",
        "credentials",
    ],
)
def test_keys_that_hold_secrets(key: str) -> None:
    assert is_secret_key(key)
    assert holds_secret(f"track.x.{key}=hunter2")
    assert holds_secret(f"track={{x: {{{key}: hunter2}}}}")


@pytest.mark.parametrize(
    "key",
    [
        "pad_token",
        "eos_token",
        "bos_token_id",
        "tokens",
        "tokenizer",
        "token_type",
        "key",
        "keys",
        "secrets_of_success",
        "passwords_file",
        "monkey",
        "max_tokens",
        "special_tokens",
        "mask_token",
        "key_padding_mask",
        "num_key_value_heads",
        "api",
    ],
)
def test_keys_that_hold_none(key: str) -> None:
    assert not is_secret_key(key)
    assert not holds_secret(f"model.{key}=5")


SECRETS = [
    "hf_" + "a" * 34,
    "ghp_" + "a" * 36,
    "github_pat_" + "a" * 40,
    "glpat-" + "a" * 20,
    "sk-" + "a" * 40,
    "sk-ant-api03-" + "a" * 40,
    "AKIA" + "A" * 16,
    "AIza" + "a" * 35,
    "xoxb-" + "1" * 12,
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc",
    "https://me:hunter2@example.org/data",
    "https://bucket.s3.amazonaws.com/x.tar?X-Amz-Expires=60&X-Amz-Signature=" + "0a" * 32,
    "https://account.blob.core.windows.net/x?sp=r&sig=" + "a0%2B" * 8,
    "Authorization: Bearer " + "a1" * 12,
]


@pytest.mark.parametrize("secret", SECRETS)
def test_values_that_are_secrets_are_never_echoed(
    project: Path, capsys: pytest.CaptureFixture[str], secret: str
) -> None:
    text = (project / "recipe.yaml").read_text()
    cases = [
        (f"{text}\ndefine: {{x: '{secret}'}}\n", []),
        (f"{text}\nseed: '{secret}'\n", []),
        (f"{text}\n# {secret}\n", []),
        (f"{text}\n'{secret}': 1\n", []),
        (text, [f"define.x={secret}"]),
        (text, [f"optimizer.{secret}=1"]),
        (text, [f"define={{x: [{secret}"]),
        (text, [secret]),
        (text, ["--remove", f"x.{secret}"]),
    ]
    for recipe, overrides in cases:
        (project / "recipe.yaml").write_text(recipe)
        for command in ("check", "show", "train"):
            try:
                code = main([command, "recipe.yaml", *overrides, *(["--fast"] if command == "check" else [])])
            except SystemExit as error:
                code = int(str(error.code))
            printed = capsys.readouterr()
            assert code == 2
            assert secret not in printed.out + printed.err
            assert "hunter2" not in printed.out + printed.err


@pytest.mark.parametrize(
    "text",
    ["hf_hub", "sk-learn", "0123456789abcdef0123456789abcdef01234567", "https://example.org:8080/x", "s3://bucket/key"],
)
def test_values_that_are_none(text: str) -> None:
    assert shape_in(text) is None


def test_what_looks_like_a_secret_and_is_none() -> None:
    tokens = "define={pad_token: '<pad>', token: null, tokenizer: {_target_: mine.py:build, width: 3}, use_token: true}"
    load_recipe("recipe.yaml", [tokens, "define.token=true"])
    for words in ("the bearer authentication-scheme", "https://example.org/x?page=2&token=short", "design=" + "a" * 40):
        assert masked(words) == words


# ---------------------------------------------------------------------- what else a recipe says


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", ".hidden", "-rf", "a\nb", "a b", "", "ä", "x" * 129, "a\0"])
def test_names_that_become_paths(name: str) -> None:
    import json

    with pytest.raises(RecipeError):
        load_recipe("recipe.yaml", [f"name={json.dumps(name)}"])


def test_objects_are_as_good_as_their_class() -> None:
    import torch

    trust = Trust((Path.cwd(),))
    assert objection(torch.nn.Linear(1, 1), trust) is None
    assert objection([1, ("a", {"b": torch.zeros(1)})], trust) is None
    assert objection([torch.hub.load], trust) is not None
    endless: list[Any] = []
    endless.append(endless)
    assert objection(endless, trust) is not None
    assert objection(subprocess, trust) is not None
    assert objection(torch.nn.Linear(1, 1).forward, trust) is not None
