"""What a recipe may name. A stranger's recipe must not be able to run a command or overwrite a file.

A target is judged by where the resolved object itself was defined, not by its spelling:
`torch.os.system` is `os.system`. Nothing listed here starts a process or opens a path for writing.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any

# module prefixes whose classes may be named; never a whole package
CLASSES = (
    "launcher.datasets",
    "launcher.models",
    "torch.nn.modules",
    "torch.nn.parameter",
    "torch.optim",
    "torch.utils.data.dataset",
    "torchmetrics",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.transforms",
    "transformers.models",
    "transformers.data.data_collator",
)
# functions that build what a slot wants
FUNCTIONS = (
    "timm.create_model",
    "timm.models._factory.create_model",
    "torch._VariableFunctionsClass.tensor",  # torch.tensor
    "torch.utils.data._utils.collate.default_collate",
    "torch.utils.data.dataset.random_split",
    "datasets.load.load_dataset",
)
FUNCTION_PREFIXES = ("torch.nn.functional", "torch.nn.init", "torchvision.models", "torchvision.transforms")
METHODS = ("from_config", "from_pretrained")  # of listed classes


def may_import(module: str, own_folders: tuple[Path, ...], allow: tuple[str, ...]) -> bool:
    """Whether importing this module is safe before its objects are judged: importing runs it."""
    top = module.partition(".")[0]
    listed = {name.partition(".")[0] for name in (*CLASSES, *FUNCTIONS, *FUNCTION_PREFIXES)}
    return top in listed or top in allow or is_own_module(module, own_folders)


def is_own_module(module: str, own_folders: tuple[Path, ...]) -> bool:
    """Whether a dotted name is a file of the user's own project."""
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts):
        return False
    candidates = [folder.joinpath(*parts) for folder in own_folders]
    return any(path.with_suffix(".py").is_file() or (path / "__init__.py").is_file() for path in candidates)


def is_own_file(file: str | None, own_folders: tuple[Path, ...]) -> bool:
    """Whether a module's file belongs to the user's project, and not to an environment inside it."""
    if file is None:
        return False
    path = Path(file).resolve()
    installed = [Path(sysconfig.get_paths()[kind]).resolve() for kind in ("purelib", "platlib", "stdlib")]
    if any(path.is_relative_to(folder) for folder in installed) or "site-packages" in path.parts:
        return False
    return any(path.is_relative_to(folder) for folder in own_folders)


def objection(thing: Any, own_folders: tuple[Path, ...], allow: tuple[str, ...]) -> str | None:
    """Why this object may not be named in a recipe; None where it may."""
    if type(thing).__module__ == "torch" and type(thing).__name__ == "dtype":
        return None
    module = getattr(thing, "__module__", None)
    name = getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return f"a {type(thing).__name__} is neither a class nor a function"
    if module.partition(".")[0] in allow or is_own_file(
        getattr(sys.modules.get(module), "__file__", None), own_folders
    ):
        return None
    full = f"{module}.{name}"
    if full in FUNCTIONS:
        return None
    owner = getattr(thing, "__self__", None)
    is_class = isinstance(thing, type)
    if not is_class and isinstance(owner, type) and name.rpartition(".")[2] in METHODS:
        is_class, module = True, owner.__module__
    prefixes = CLASSES if is_class else FUNCTION_PREFIXES
    if any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes):
        return None
    return f"it is {full}, which a recipe may not name"
