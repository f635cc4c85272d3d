"""Recipes, data and models of a stranger's that try to send something to a server, or to have code of one run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import projects
import pytest

from launcher.cli.main import main
from launcher.errors import LauncherError, RecipeError
from launcher.objective.patterns import matches
from launcher.recipe.build import Builder
from launcher.recipe.load import load_recipe
from launcher.recipe.masking import masked
from launcher.recipe.policy import Trust
from launcher.recipe.secrets import holds_secret
from launcher.recipe.targets import find_target
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
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_check_sends_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change = f"define={{{CONFIG}}}"
    data = (
        "data.train={_target_: datasets.load_dataset, path: csv, split: train, data_files: 'https://h/${define.k.key}'}"
    )
    assert main(["check", "recipe.yaml", change, data]) == 2
    assert "hunter2" not in "".join(capsys.readouterr())
