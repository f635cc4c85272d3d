"""What the launcher takes of the insides of torch, torchmetrics and Accelerate is there, and is taken in one place."""

from __future__ import annotations

import ast
import atexit
import importlib
import io
import multiprocessing
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import accelerate
import numpy
import pytest
import torch
import torchmetrics
from torch import nn
from torch.nn.modules import batchnorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim import optimizer as optimizers
from torch.optim.lr_scheduler import ConstantLR, SequentialLR
from torch.utils import _pytree
from torch.utils.data import DataLoader
from torch.utils.data._utils import pin_memory, worker

import launcher
from launcher import internals

pytestmark = pytest.mark.torch_internals
PACKAGE = Path(launcher.__file__).parent


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)


def sequence() -> SequentialLR:
    optimizer = sgd()
    return SequentialLR(optimizer, [ConstantLR(optimizer), ConstantLR(optimizer)], [3])


def stepped() -> Optimizer:
    optimizer: Optimizer = sequence().optimizer
    optimizer.step()
    return optimizer


def ignoring(module: nn.Module) -> nn.Module:
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ["bias"])
    return module


def loaded_without_memory() -> torch.UntypedStorage:
    file = io.BytesIO()
    torch.save(torch.ones(2), file)
    file.seek(0)
    mode, _ = internals.fake_tensors()
    with mode():
        loaded: torch.Tensor = torch.load(file, weights_only=True)
    return loaded.untyped_storage()


SYMBOLS: dict[str, Callable[[], object]] = {
    "_engine_run_backward": lambda: torch.autograd.graph,
    "_version": lambda: torch.zeros(2),
    "_base": lambda: torch.zeros(2, requires_grad=True).exp()[:1],
    "_is_profiler_enabled": lambda: torch.autograd.profiler,
    "_use_grad_for_differentiable": lambda: optimizers,
    "_global_optimizer_pre_hooks": lambda: optimizers,
    "_global_optimizer_post_hooks": lambda: optimizers,
    "profile_hook_step": lambda: Optimizer,
    "_optimizer_step_pre_hooks": sgd,
    "_optimizer_step_post_hooks": sgd,
    "_opt_called": stepped,
    "_wrapped_by_lr_sched": lambda: sequence().optimizer.step,
    "_amp_foreach_non_finite_check_and_unscale_": lambda: torch,
    "_step_supports_amp_scaling": lambda: torch.optim.AdamW([torch.zeros(1, requires_grad=True)], fused=True),
    "_per_optimizer_states": lambda: torch.amp.GradScaler("cpu"),
    "_foreach_add_": lambda: torch,
    "_fused_adam_": lambda: torch,
    "_fused_adamw_": lambda: torch,
    "_C": lambda: torch,
    "_group_tensors_by_device_and_dtype": lambda: torch._C,
    "_disable_dynamo": lambda: torch,
    "_inside_ddp_forward": lambda: DistributedDataParallel,
    "_orig_mod": lambda: torch.compile(nn.Linear(1, 1), backend="eager"),
    "_worker_info": lambda: worker,
    "WorkerInfo": lambda: worker,
    "pin_memory": lambda: pin_memory,
    "_get_iterator": lambda: DataLoader,
    "_checkpoint_offset": loaded_without_memory,
    "_metadata": lambda: nn.Linear(1, 1).state_dict(),
    "_modules": lambda: nn.Linear(1, 1),
    "_parameters": lambda: nn.Linear(1, 1),
    "_buffers": lambda: nn.Linear(1, 1),
    "_PACKAGED_DATASETS_MODULES": lambda: importlib.import_module("datasets.packaged_modules"),
    "_forward_hooks": lambda: nn.Linear(1, 1),
    "_forward_pre_hooks": lambda: nn.Linear(1, 1),
    "_BatchNorm": lambda: batchnorm,
    "_DropoutNd": lambda: torch.nn.modules.dropout,
    "tree_map": lambda: _pytree,
    "_backward_hooks": nn.Module,
    "_backward_pre_hooks": nn.Module,
    "_disable_current_modes": lambda: importlib.import_module("torch.utils._python_dispatch"),
    "_schema": lambda: torch.ops.aten.add_.Tensor,
    "_no_grad_trunc_normal_": lambda: nn.init,
    "_milestones": sequence,
    "_schedulers": sequence,
    "_indices": lambda: torch.eye(2).to_sparse(),
    "_values": lambda: torch.eye(2).to_sparse(),
    "_ddp_params_and_buffers_to_ignore": lambda: ignoring(nn.Linear(1, 1)),
    "_cdata": lambda: torch.zeros(1).untyped_storage(),
    "_get_default_store": lambda: torch.distributed.distributed_c10d,
    "_abort_process_group": lambda: torch.distributed.distributed_c10d,
    "_world": lambda: torch.distributed.distributed_c10d,
    "_reductions": torchmetrics.MeanMetric,
    "_to_sync": torchmetrics.MeanMetric,
    "_reset_state": lambda: accelerate.state.AcceleratorState,
    "_run_exitfuncs": lambda: atexit,
    "_python_dispatch": lambda: torch.utils,
    "_subclasses": lambda: torch,
    "_inst": lambda: random,
    "_rand": lambda: numpy.random.mtrand,
    "_config": multiprocessing.current_process,
}


@pytest.mark.parametrize("name", SYMBOLS)
def test_it_is_there(name: str) -> None:
    assert hasattr(SYMBOLS[name](), name)


def test_each_private_name_of_the_module_is_among_these() -> None:
    by_other_tests = {"_dynamo", "__dynamo_disable"}  # the compiler's, see test_uncompiled
    modules = {"_utils", "_pytree", "_subclasses", "_python_dispatch"}  # imported above
    assert private_names(PACKAGE / "internals.py") - by_other_tests - modules <= set(SYMBOLS)


def test_it_does_what_it_is_taken_for() -> None:
    flag, one = torch.zeros(()), torch.ones(())
    for check in (internals.finite_check(), internals._finite_check_by_one):
        check([torch.ones(2), torch.zeros(3)], flag, one)
        assert flag.item() == 0
        check([torch.ones(2), torch.tensor([1.0, torch.inf])], flag, one)
        assert flag.item() == 1
        flag.zero_()
    assert internals.milestones(sequence()) == [3]
    assert len(internals.inner_schedulers(sequence())) == 2
    module = nn.Linear(1, 1)
    assert internals.uncompiled(module) is module
    assert internals.uncompiled(torch.compile(module, backend="eager")) is module  # type: ignore[arg-type]
    tensor = torch.zeros(4)
    ids = {internals.storage_id(one.untyped_storage()) for one in (tensor, tensor[2:], tensor.view(2, 2))}
    assert len(ids) == 1
    kinds = (dense := torch.eye(2), nn.Parameter(dense), dense.to_sparse(), dense.to_sparse_csc())
    assert [internals.has_storage(tensor) for tensor in kinds] == [True, True, False, False]
    assert [len(internals.parts_of(tensor)) for tensor in kinds] == [1, 1, 2, 3]
    assert not any(map(internals.wraps_others, kinds))
    assert isinstance(nn.BatchNorm2d(1), internals.batch_norms())
    assert not isinstance(nn.LayerNorm(1), internals.batch_norms())
    assert set(internals.reductions(torchmetrics.MeanMetric())) == {"mean_value", "weight"}


class Forgetting(torch.utils.data.IterableDataset[bool]):
    """Says whether it is in a worker: before it forgets, and then."""

    def __iter__(self) -> Iterator[bool]:
        yield torch.utils.data.get_worker_info() is not None
        internals.forget_worker()
        yield torch.utils.data.get_worker_info() is not None


def test_a_worker_forgets_that_it_is_one() -> None:
    assert list(DataLoader(Forgetting(), num_workers=1, batch_size=None)) == [True, False]


def test_it_loads_nothing_by_itself() -> None:
    script = "import sys, launcher.internals; sys.exit(str([m for m in ('torch', 'numpy') if m in sys.modules] or ''))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


# ---------------------------------------------------------------------- in one place

OURS = {("recipe/load.py", "_document")}  # a field of Recipe that pydantic shall not see
DOCUMENTED = {("os", "_exit"), ("sys", "_current_frames")}  # Python's own, public in spite of their names
NAMED_TUPLES = {"_fields", "_asdict", "_replace", "_make"}  # documented: underscores keep them apart from fields
BY_NAME = {"getattr", "hasattr", "setattr", "delattr", "__setattr__", "attrgetter"}


def is_private(name: str) -> bool:
    is_pythons = name.startswith("__") and name.endswith("__")
    return name.startswith("_") and bool(name.strip("_")) and not is_pythons


def own_names(tree: ast.AST) -> set[str]:
    """What a module defines itself."""
    own: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            own.add(node.attr)
    return own


def touched(node: ast.AST) -> Iterator[tuple[str, str]]:
    """What of whose a piece of code touches."""
    if isinstance(node, ast.Attribute):
        yield ast.unparse(node.value), node.attr
    elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("launcher"):
        yield from ((node.module or "", part) for part in (node.module or "").split("."))
        yield from ((node.module or "", alias.name) for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from ((alias.name, part) for alias in node.names for part in alias.name.split("."))
    elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in BY_NAME:
        whose = ast.unparse(node.args[0]) if node.args else ""
        yield from ((whose, text) for arg in node.args for text in texts(arg))


def texts(node: ast.AST) -> list[str]:
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def private_uses(path: Path) -> Iterator[tuple[int, str, str]]:
    tree = ast.parse(path.read_text())
    own = own_names(tree)
    for node in ast.walk(tree):
        for whose, name in touched(node):
            if is_private(name) and name not in own and whose not in ("self", "cls"):
                yield getattr(node, "lineno", 0), whose, name


def private_names(path: Path) -> set[str]:
    named = {text for node in ast.walk(ast.parse(path.read_text())) for text in texts(node)}
    return {name for _, _, name in private_uses(path)} | set(filter(is_private, filter(str.isidentifier, named)))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_else_touches_private_names(path: Path) -> None:
    place = path.relative_to(PACKAGE).as_posix()
    if place == "internals.py":
        return
    found = [
        f"{place}:{line}: {whose}.{name} is somebody's private name; ask for it in launcher/internals.py"
        for line, whose, name in private_uses(path)
        if (whose, name) not in DOCUMENTED and name not in NAMED_TUPLES and (place, name) not in OURS
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import torch\ntorch._C", "_C"),
        ("from torch.utils import _pytree", "_pytree"),
        ("from torch.utils._pytree import tree_map", "_pytree"),
        ("import torch._dynamo", "_dynamo"),
        ("getattr(thing, '_inner', None)", "_inner"),
        ("setattr(thing, '__dynamo_disable', 1)", "__dynamo_disable"),
    ],
)
def test_the_look_at_private_names_sees_every_way(code: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(code)
    assert name in {found for _, _, found in private_uses(tmp_path / "some.py")}


def test_hooks_of_a_module_are_seen() -> None:
    for register in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"):
        layer = nn.Linear(1, 1)
        assert not internals.has_hooks(layer)
        getattr(layer, f"register_{register}")(lambda *_: None)
        assert internals.has_hooks(layer)
