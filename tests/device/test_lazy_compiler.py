"""torch's compiler is loaded where somebody compiles, and does its work there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiers import rounds
from torch.nn.parallel import DistributedDataParallel
from worlds import TINY, in_world, train

from launcher.device import lazy_compiler

pytestmark = pytest.mark.torch_internals
TWO_GLOO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def run(code: str) -> None:
    """In a process of its own that has imported torch, and this program, and no compiler yet."""
    in_world(1, executed, code)


def executed(code: str) -> None:
    assert "torch._dynamo" not in sys.modules
    exec(code, {})


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_imports_neither_the_compiler_nor_its_algebra(processes: int, tmp_path: Path) -> None:
    command = ["train", str(TINY), "--cpu", "--quiet", "--run-dir", str(tmp_path / "run"), "launch.threads=1"]
    longer = ["train={steps: 6}", "--allow-changes", "train.steps"]  # from the first one's state
    file = tmp_path / "twice.py"
    file.write_text(
        "import gc, sys\n"
        "from launcher.cli.main import main\n"
        f"for more in (['train={{steps: 4}}'], {longer!r}):\n"
        f"    assert main([*{command!r}, *more]) == 0\n"
        "    assert 'torch' in sys.modules and not {'torch._dynamo', 'sympy'} & {*sys.modules}\n"
        "    assert gc.isenabled() and gc.get_freeze_count() > 10_000\n"  # it looks for garbage, but among no modules
    )
    started = [sys.executable, *(TWO_GLOO_PROCESSES if processes > 1 else ()), str(file)]
    done = subprocess.run(started, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*6"))) == 1


KEEP = """
def keep(f=None, recursive=True):
    def inner(*args, **kwargs):
        return {}
    return functools.wraps(f)(inner)
torch._disable_dynamo = keep
"""
OTHER_TORCHES = {
    "it asks for no cache": KEEP.format("torch.compiler.disable(f)(*args, **kwargs)"),
    "it hands on other arguments": KEEP.format("getattr(f, '__dynamo_disable', f)(inner, *args, **kwargs)"),
    "it gives another result": KEEP.format("2 * getattr(f, '__dynamo_disable', f)(*args, **kwargs)"),
    "it is not what is around an optimizer's methods": KEEP.format(
        "getattr(f, '__dynamo_disable', f)(*args, **kwargs)"
    ),
    "it takes other arguments": "def keep(*, function):\n    return function\ntorch._disable_dynamo = keep\n",
    "there is none": "del torch._disable_dynamo\n",
    "plain": "os.environ['LAUNCHER_PLAIN_TORCH'] = '1'\n",
}


@pytest.mark.parametrize("other", OTHER_TORCHES.values(), ids=OTHER_TORCHES)
def test_where_torch_keeps_functions_otherwise_all_is_left_to_torch(other: str) -> None:
    run(
        f"import functools, os, sys, torch\nkept = torch._disable_dynamo\n{other}"
        "from launcher.device import lazy_compiler\n"
        "lazy_compiler.optimizers()\n"
        "torch._disable_dynamo = kept\n"  # this torch's compiler needs it
        "weight = torch.ones(2, requires_grad=True)\n"
        "one = torch.optim.SGD([weight], 0.5)\n"
        "assert 'torch._dynamo' in sys.modules\n"
        "weight.grad = torch.ones(2)\n"
        "one.step()\n"
        "assert weight.tolist() == [0.5, 0.5]\n"
        "with lazy_compiler.ddp():\n"
        "    assert torch._dynamo is sys.modules['torch._dynamo']\n"
    )


def test_the_stand_in_is_taken_away_where_making_a_ddp_fails() -> None:
    run(
        "import sys, torch\n"
        "from launcher.device import lazy_compiler\n"
        "try:\n"
        "    with lazy_compiler.ddp():\n"
        "        assert 'torch._dynamo' not in sys.modules and '_dynamo' in vars(torch)\n"
        "        raise KeyError\n"
        "except KeyError:\n"
        "    assert '_dynamo' not in vars(torch)\n"
    )


def test_what_stands_in_answers_as_the_compiler_does() -> None:
    run(
        "import torch._dynamo\n"
        "from launcher.device import lazy_compiler\n"
        "assert torch._dynamo.utils.get_optimize_ddp_mode() == lazy_compiler._DDP_MODE\n"
    )


def test_a_ddp_that_asks_the_compiler_something_else_gets_no_stand_in() -> None:
    run(
        "import torch\n"
        "from torch.nn.parallel import DistributedDataParallel\n"
        "from launcher.device import lazy_compiler\n"
        "def made(self, module):\n"
        "    self.mode = torch._dynamo.config.how_to_add\n"
        "DistributedDataParallel.__init__ = made\n"
        "with lazy_compiler.ddp():\n"
        "    assert '_dynamo' not in vars(torch)\n"
    )


def test_an_optimizer_can_be_made_in_a_compiled_function() -> None:
    run(
        "import torch\n"
        "from launcher.device import lazy_compiler\n"
        "lazy_compiler.optimizers()\n"
        "model = torch.nn.Linear(2, 2)\n"
        "def made(x):\n"
        "    optimizer = torch.optim.SGD(model.parameters(), 0.1)\n"
        "    return x + len(optimizer.param_groups)\n"
        "assert torch.compile(made, backend='eager')(torch.zeros(())) == 1\n"
    )


def test_where_the_compiler_is_loaded_it_keeps_away_from_what_torch_keeps_it_away_from() -> None:
    run(
        "import torch\n"
        "from launcher.device import lazy_compiler\n"
        "lazy_compiler.optimizers()\n"
        "one = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), 0.1)\n"
        "function = torch.optim.Optimizer.state_dict.__wrapped__\n"
        "kept = one.state_dict()\n"
        "before = function.__dynamo_disable\n"
        "import torch._dynamo\n"
        "assert one.state_dict() == kept\n"
        "assert function.__dynamo_disable is not before\n"
        "assert function.__dynamo_disable._torchdynamo_disable\n"
    )


def ddp_by_torch_alone(spared: bool) -> list[list[float]]:
    """The weights after three steps of DDP, the last one compiled."""
    assert "torch._dynamo" not in sys.modules
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    if spared:
        with lazy_compiler.ddp():
            wrapped = DistributedDataParallel(model)
            assert "torch._dynamo" not in sys.modules
        assert "_dynamo" not in vars(torch)
    else:
        wrapped = DistributedDataParallel(model)
        assert "torch._dynamo" in sys.modules
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    inputs = torch.arange(6.0).reshape(2, 3) + torch.distributed.get_rank()
    for call in (wrapped, wrapped, torch.compile(wrapped, backend="eager")):
        call(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert wrapped._use_python_reducer is False
    torch.distributed.destroy_process_group()
    return [parameter.flatten().tolist() for parameter in model.parameters()]


def test_ddp_made_without_the_compiler_trains_as_torchs_own_and_can_be_compiled_later() -> None:
    spared, usual = (in_world(2, ddp_by_torch_alone, spared) for spared in (True, False))
    assert spared[0] == spared[1] == usual[0] == usual[1]


def test_what_else_ddp_wants_of_the_compiler_loads_it() -> None:
    run(
        "import sys, torch\n"
        "from launcher.device import lazy_compiler\n"
        "with lazy_compiler.ddp():\n"
        "    assert torch._dynamo.utils.get_optimize_ddp_mode() == 'ddp_optimizer'\n"
        "    assert 'torch._dynamo' not in sys.modules\n"
        "    assert torch._dynamo.config.optimize_ddp is True\n"
        "    assert torch._dynamo.utils.get_optimize_ddp_mode.__module__ == 'torch._dynamo.utils'\n"
        "assert torch._dynamo is sys.modules['torch._dynamo']\n"
        "with lazy_compiler.ddp():\n"
        "    assert torch._dynamo is sys.modules['torch._dynamo']\n"
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs g++ for a CPU")
@rounds("processes", plain=[], long=[1, 2])  # by block it is trained in tests/model
def test_a_compiled_model_trains_to_the_same_numbers(processes: int, tmp_path: Path) -> None:
    settings = ("train={steps: 6}", "launch.threads=1", "track.every=1 steps")
    usual = train(tmp_path / "usual", *settings, size=processes)
    compiled = train(tmp_path / "compiled", *settings, "device.compile=true", size=processes)
    assert len(usual.column("loss")) == 6
    assert compiled.column("loss") == pytest.approx(usual.column("loss"), rel=1e-5)
    assert compiled.distance(usual) < 1e-5
