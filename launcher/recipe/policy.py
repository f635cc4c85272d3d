"""What a recipe may name. A stranger's recipe must not be able to run a command or overwrite a file.

A target is judged by where the object that it comes to was defined, not by how it is spelled: `torch.os.system`
is `os.system`. What is not on these lists is refused. Nothing on them starts a process, writes Python and runs it, or
opens a path for writing, with the arguments that are let through; whole packages are never listed, because most have
something that does (`numpy.memmap` overwrites files, torch's `SubprocessHandler` starts programs). Classes are listed
by their base, functions one by one (`builders.py`). What is listed was read: `tests/names/judged.txt`.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.internals import packaged_readers
from launcher.recipe.builders import BUILDERS
from launcher.recipe.directory import directory
from launcher.recipe.inputs import unreadable
from launcher.recipe.remote_paths import at_any_depth, foreign_path, outdated, unknown_place
from launcher.text import brief
from launcher.version import PACKAGE


@dataclass(frozen=True)
class Classes:
    """The classes under a module that a recipe may name.

    Attributes:
        module: The module that defines them, or one below it does.
        bases: They have one of these bases; without any, every class there is meant.
        but_not: Modules below that are left out.
    """

    module: str
    bases: tuple[str, ...] = ()
    but_not: tuple[str, ...] = ()

    def hold(self, thing: type) -> bool:
        """Whether a class is one of them."""
        if not _is_below(thing.__module__, self.module) or any(_is_below(thing.__module__, m) for m in self.but_not):
            return False
        names = {f"{base.__module__}.{base.__qualname__}" for base in thing.__mro__}
        return not self.bases or not names.isdisjoint(self.bases)


_MODULE = "torch.nn.modules.module.Module"
_SAMPLER = "torch.utils.data.sampler.Sampler"
_TRANSFORMERS = (
    "transformers.configuration_utils.PreTrainedConfig",
    "transformers.configuration_utils.PretrainedConfig",
    "transformers.feature_extraction_utils.FeatureExtractionMixin",
    "transformers.image_processing_base.ImageProcessingMixin",
    "transformers.modeling_utils.PreTrainedModel",
    "transformers.processing_utils.ProcessorMixin",
    "transformers.tokenization_utils_base.PreTrainedTokenizerBase",
)
CLASSES = (
    Classes("launcher.datasets"),
    Classes("launcher.models"),
    Classes("launcher.data.batch_samplers", (_SAMPLER,)),
    Classes("launcher.data.mixing"),
    Classes("launcher.data.mixture", (_SAMPLER,)),
    Classes("torch.nn.modules", (_MODULE,)),
    Classes("torch.nn.parameter", ("torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")),
    Classes("torch.optim", ("torch.optim.optimizer.Optimizer", "torch.optim.lr_scheduler.LRScheduler", _MODULE)),
    Classes("torch.utils.data.dataset", ("torch.utils.data.dataset.Dataset",)),
    Classes("torch.utils.data.sampler", (_SAMPLER,)),
    Classes("torchmetrics", ("torchmetrics.metric.Metric", "torchmetrics.collections.MetricCollection")),
    # LSUN unpickles a cache beside its data, Kinetics downloads from the addresses in a file beside it
    Classes(
        "torchvision.datasets",
        ("torchvision.datasets.vision.VisionDataset",),
        ("torchvision.datasets.lsun", "torchvision.datasets.kinetics"),
    ),
    # feature_extraction writes the names of modules into Python and runs it; `_utils` feeds it, quantization rewrites
    Classes(
        "torchvision.models",
        (_MODULE,),
        tuple(
            f"torchvision.models.{name}"
            for name in (
                "_utils",
                "detection.backbone_utils",
                "feature_extraction",
                "quantization",
                "segmentation._utils",
            )
        ),
    ),
    Classes("torchvision.ops", (_MODULE,)),
    Classes("torchvision.transforms"),
    # these build a model of any repository of the hub, unpickle an index, or load a kernel of the hub
    Classes(
        "transformers.models",
        _TRANSFORMERS,
        tuple(
            f"transformers.models.{name}"
            for name in ("deprecated", "rag", "sam3_video", "timm_backbone", "timm_wrapper")
        ),
    ),
    Classes("transformers.data.data_collator"),
)
_MODEL_ARGUMENTS = "attn_implementation config dtype torch_dtype"
_LOADED_ARGUMENTS = (
    "pretrained_model_name_or_path revision subfolder variant local_files_only ignore_mismatched_sizes num_labels "
    "id2label label2id problem_type use_cache output_hidden_states output_attentions return_dict "
    "hidden_dropout_prob attention_probs_dropout_prob dropout attention_dropout classifier_dropout "
    "max_position_embeddings vocab_size pad_token_id bos_token_id eos_token_id use_fast model_max_length "
    "padding_side truncation_side pad_token bos_token eos_token unk_token mask_token sep_token cls_token "
    "additional_special_tokens add_prefix_space add_bos_token add_eos_token do_lower_case size do_resize do_normalize"
)
# of peft's configs: not what imports a module (megatron_core, auto_mapping), reads a cache or another repository
_OF_ADAPTERS = "exclude_modules modules_to_save target_modules task_type"
_OF_LAYERS = f"{_OF_ADAPTERS} layers_pattern layers_to_transform"
_OF_RANKS = f"{_OF_LAYERS} alpha alpha_pattern init_weights module_dropout r rank_dropout rank_pattern"
_OF_PROMPTS = "num_attention_heads num_layers num_transformer_submodules num_virtual_tokens task_type token_dim"
_MAKERS = "arange eye full linspace logspace ones rand randint randn randperm tensor zeros"  # of numbers alone
# functions and classes by the name they were defined under, and the arguments that may be written; None: any
FUNCTIONS: dict[str, str | None] = {
    "builtins.tuple": None,  # a recipe's lists are lists, and some packages ask their arguments for tuples
    **dict.fromkeys(f"torch.{maker}" for maker in _MAKERS.split()),
    "torch.utils.data._utils.collate.default_collate": None,
    "torch.utils.data.dataset.random_split": None,
    "timm.models._factory.create_model": (
        "model_name pretrained num_classes in_chans img_size drop_rate drop_path_rate global_pool features_only "
        "out_indices output_stride patch_size embed_dim depth num_heads mlp_ratio qkv_bias init_values class_token "
        "dynamic_img_size act_layer norm_layer"
    ),
    "peft.tuners.ia3.config.IA3Config": f"{_OF_ADAPTERS} fan_in_fan_out feedforward_modules init_ia3_weights",
    "peft.tuners.ln_tuning.config.LNTuningConfig": _OF_ADAPTERS,
    "peft.tuners.loha.config.LoHaConfig": f"{_OF_RANKS} use_effective_conv2d",
    "peft.tuners.lokr.config.LoKrConfig": (
        f"{_OF_RANKS} decompose_both decompose_factor rank_dropout_scale use_effective_conv2d"
    ),
    "peft.tuners.lora.config.LoraConfig": (
        f"{_OF_LAYERS} alpha_pattern bias ensure_weight_tying fan_in_fan_out init_lora_weights lora_alpha lora_bias "
        "lora_dropout r rank_pattern target_parameters trainable_token_indices use_dora use_rslora"
    ),
    "peft.tuners.oft.config.OFTConfig": (
        f"{_OF_LAYERS} bias block_share coft eps fan_in_fan_out init_weights module_dropout num_cayley_neumann_terms "
        "oft_block_size r use_cayley_neumann"
    ),
    "peft.tuners.p_tuning.config.PromptEncoderConfig": (
        f"{_OF_PROMPTS} encoder_dropout encoder_hidden_size encoder_num_layers encoder_reparameterization_type"
    ),
    "peft.tuners.prefix_tuning.config.PrefixTuningConfig": f"{_OF_PROMPTS} encoder_hidden_size prefix_projection",
    "peft.tuners.prompt_tuning.config.PromptTuningConfig": _OF_PROMPTS,
    "peft.tuners.vera.config.VeraConfig": (
        f"{_OF_LAYERS} bias d_initial fan_in_fan_out init_weights projection_prng_key r save_projection vera_dropout"
    ),
    "datasets.load.load_dataset": (
        "path name data_dir data_files split revision streaming keep_in_memory num_proc "
        "delimiter sep column_names field drop_labels"
    ),
}
# methods of listed classes under a module
METHODS: dict[tuple[str, str], str | None] = {
    ("torch.nn.modules.sparse", "from_pretrained"): None,  # Embedding, EmbeddingBag
    ("transformers.models", "from_config"): _MODEL_ARGUMENTS,
    ("transformers.models", "from_pretrained"): f"{_LOADED_ARGUMENTS} {_MODEL_ARGUMENTS}",
}
_AUTO = "transformers.models.auto"  # its classes have no base in common
_MODULES = (*(classes.module for classes in CLASSES), *BUILDERS)
_NUMBERS = (type(None), bool, int, float, complex)
_PLAIN = (*_NUMBERS, str, bytes, range)
_PLAIN_OF_TORCH = ("dtype", "device", "layout", "memory_format", "Tensor", "Size")


def _is_below(module: str, parent: str) -> bool:
    return module == parent or module.startswith(f"{parent}.")


def listed_packages() -> set[str]:
    """The packages of which something is on the lists."""
    return {name.partition(".")[0] for name in (*_MODULES, *FUNCTIONS)}


@dataclass(frozen=True)
class Trust:
    """What one component may name besides the lists.

    Attributes:
        own: Folders whose Python files are the user's own code, and single files; `launcher.recipe.project` says which.
        allow: Packages or modules that the user allowed, with all below them.
        places: Folders in which `my_model.py:Net` is looked for; where none are given, those of `own`.
    """

    own: tuple[Path, ...]
    allow: tuple[str, ...] = ()
    places: tuple[Path, ...] = ()

    @property
    def homes(self) -> tuple[Path, ...]:
        """The folders in which files of the user's are looked for."""
        return self.places or self.own

    def allows(self, module: str) -> bool:
        """Whether the user allowed a module."""
        return any(_is_below(module, allowed) for allowed in self.allow)

    def may_import(self, module: str) -> bool:
        """Whether a module of an installed package may be imported to look at its objects: importing runs it.

        It may where something listed is in it, or below it (then importing that would import this too).
        """
        holds_something = any(_is_below(name, module) for name in (*_MODULES, *FUNCTIONS))
        return self.allows(module) or holds_something or any(_is_below(module, parent) for parent in _MODULES)

    def owns(self, file: str | Path | None) -> bool:
        """Whether a file belongs to the user's project, and not to an environment inside it."""
        return file is not None and _is_own(Path(file).resolve(), self.own)


@functools.lru_cache(maxsize=10_000)  # each start asks it of all that is imported
def _is_own(path: Path, own: tuple[Path, ...]) -> bool:
    inside = [folder for folder in own if path.is_relative_to(folder)]  # a file lies in itself
    return not is_installed(path) and any(not _in_environment(path, folder) for folder in inside)


def is_installed(path: Path) -> bool:
    """Whether a file belongs to Python, to an installed package, or to this program."""
    if "site-packages" in path.parts or "dist-packages" in path.parts:
        return True
    return any(path.is_relative_to(folder) for folder in _installed())


@functools.cache
def _installed() -> tuple[Path, ...]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    folders = [Path(sysconfig.get_paths()[kind]) for kind in kinds]
    return tuple(folder.resolve() for folder in (*folders, PACKAGE))


def _in_environment(path: Path, folder: Path) -> bool:
    """Whether a folder between these is a virtual or conda environment."""
    inside = [parent for parent in path.parents if parent.is_relative_to(folder)]
    return any((parent / "pyvenv.cfg").exists() or (parent / "conda-meta").exists() for parent in inside)


# ---------------------------------------------------------------------- judging what a name came to


def objection(thing: Any, trust: Trust) -> str | None:
    """Why this object may not be named in a recipe; None where it may."""
    if isinstance(thing, types.ModuleType):
        return f"it is the module {thing.__name__}, neither a class nor a function"
    if isinstance(thing, functools.partial):
        return objection(thing.func, trust)
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if compiled := _compiled_by_jit(thing):
        module, _, name = compiled.rpartition(".")
    if not isinstance(module, str) or not isinstance(name, str):  # an object: as good as its class
        return None if _is_plain(thing) else objection(type(thing), trust)
    if trust.allows(module) or trust.owns(getattr(sys.modules.get(module), "__file__", None)):
        return None
    if _listed_class(thing) or _listed_function(thing) or _listed_method(thing) is not None:
        return None
    return f"it is {_full_name(thing)}, which a recipe may not name"


def _compiled_by_jit(thing: Any) -> str:
    """The full name of the function that `torch.jit.script` has compiled; empty of anything else."""
    is_compiled = (type(thing).__module__, type(thing).__name__) == ("torch.jit", "ScriptFunction")
    return str(thing.qualified_name).removeprefix("__torch__.") if is_compiled else ""


def is_constant(thing: Any) -> bool:
    """Whether a value is one of torch's types or a number, as `torch.float32` and `torch.inf` are: no words, no lists.

    A package's own words are those of this machine too: where it is installed, how it was called.
    """
    kind = type(thing)
    return kind in _NUMBERS or (kind.__module__ == "torch" and kind.__name__ in _PLAIN_OF_TORCH)


def _is_plain(thing: Any, levels: int = 8) -> bool:
    """Whether a value is a number, a word, a tensor, or a list or mapping of such."""
    kind = type(thing)
    if kind in (list, tuple, set, frozenset, dict):
        items = [*thing, *thing.values()] if kind is dict else list(thing)
        return levels > 0 and all(_is_plain(item, levels - 1) for item in items)
    return kind in _PLAIN or (kind.__module__ == "torch" and kind.__name__ in _PLAIN_OF_TORCH)


def _listed_class(thing: Any) -> bool:
    return isinstance(thing, type) and any(classes.hold(thing) for classes in CLASSES)


def _listed_function(thing: Any) -> bool:
    if _full_name(thing) in FUNCTIONS:
        return True
    return inspect.isfunction(thing) and thing.__qualname__ in BUILDERS.get(thing.__module__, "").split()


def _full_name(thing: Any) -> str:
    """The name that a function was defined under; torch's own functions in C have a class of their own."""
    name = f"{thing.__module__}.{thing.__qualname__}"
    is_builtin = isinstance(thing, types.BuiltinFunctionType)
    return name.replace("_VariableFunctionsClass.", "") if is_builtin else name


def _listed_method(thing: Any) -> tuple[str, str] | None:
    """The entry of `METHODS` that a class's method is."""
    owner = getattr(thing, "__self__", None)
    if not inspect.ismethod(thing) or not isinstance(owner, type):
        return None
    if not (_listed_class(owner) or _is_below(owner.__module__, _AUTO)):
        return None
    keys = [key for key in METHODS if key[1] == thing.__name__ and _is_below(owner.__module__, key[0])]
    return keys[0] if keys else None


# ---------------------------------------------------------------------- judging arguments

UNKNOWN = object()  # an argument whose value is not known yet

_SAFE_BUILDERS = ("arrow", "audiofolder", "csv", "imagefolder", "json", "parquet", "text", "videofolder", "webdataset")
_IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "paged_attention")
_NEVER = {  # arguments that load code or choose where files are written, at any depth, by package
    "transformers": {
        *("trust_remote_code", "auto_map", "code_revision", "custom_generate", "weights_only", "state_dict"),
        *("quantization_config", "adapter_kwargs", "kernel_config", "use_kernels", "allow_all_kernels", "gguf_file"),
        *("backbone", "backbone_kwargs", "use_timm_backbone", "use_pretrained_backbone", "cache_dir", "save_directory"),
        *("chat_template", "custom_pipelines", "hub_kernels", "index_path", "passages_path", "use_dummy_dataset"),
    },
    "timm": {"checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_custom_load"},
    "datasets": {"trust_remote_code", "cache_dir", "storage_options", "download_config"},
    "torchmetrics": {"feature_extractor_weights_path", "baseline_url"},  # a file to unpickle, any server
}
_BY_ARGUMENTS = (  # these decide what they do
    *("datasets", "launcher.datasets.hub", "launcher.datasets.shards", "peft", "timm", "torchmetrics"),
    *("torchvision.datasets", "transformers.models"),
)


def is_load_dataset(target: Any) -> bool:
    """Whether this is the function of Hugging Face's that opens data sets."""
    return _full_name_of(target) == "datasets.load.load_dataset"


def loads_repository(target: Any) -> bool:
    """Whether something listed loads what a repository of models holds, and takes `trust_remote_code`."""
    method = _listed_method(target)
    return method is not None and method[0] == "transformers.models"


def may_load_models(target: Any) -> bool:
    """Whether something listed may come to transformers, which asks on the terminal whether to run others' code."""
    module = str(getattr(target, "__module__", ""))
    named = ("peft", "torchmetrics.multimodal", "torchmetrics.text", "transformers")
    return "transformers" in sys.modules or any(_is_below(module, name) for name in named)


def style_objection(target: Any, style: str, trust: Trust) -> str | None:
    """Why a target may not be handed on without being called; None where it may.

    What is let in for its arguments must get them here, where they are judged, and not from whoever calls it later.

    Args:
        target: The class or function.
        style: `call`, `partial` or `reference`.
        trust: What the user allowed.
    """
    module = str(getattr(target, "__module__", ""))
    if style == "call" or is_trusted(module, trust) or not any(_is_below(module, parent) for parent in _BY_ARGUMENTS):
        return None
    return "what it does depends on its arguments, which are judged here: call it with _target_, without _partial_"


def is_trusted(module: str, trust: Trust) -> bool:
    """Whether what a module defines is the user's own or allowed, so that none of its arguments are judged."""
    return trust.allows(module) or trust.owns(getattr(sys.modules.get(module), "__file__", None))


def argument_objections(target: Any, arguments: Mapping[str, Any], trust: Trust) -> Iterator[tuple[str, str]]:
    """Why some arguments may not be given to something that may be named.

    Args:
        target: The class or function.
        arguments: By name; `UNKNOWN`, at any depth, where the value is known later, when this is asked again.
        trust: What the user allowed.

    Yields:
        The argument, and what is wrong with it.
    """
    module = str(getattr(target, "__module__", ""))
    if is_trusted(module, trust):
        return
    package = module.partition(".")[0]
    only = _only(target)
    for name, value in arguments.items():
        if only is not None and name not in only:
            yield name, f"a recipe may not write '{name}' here, only: {', '.join(only)}"
            continue
        for key, inner in at_any_depth(name, value):
            if message := _refused(package, key, inner):
                yield name, message
    yield from unknown_place(target, arguments, UNKNOWN)
    arguments = {**_defaults(target), **arguments}
    if package == "torchvision":
        yield from _download(arguments, trust)
    elif package == "timm":
        yield from _timm_model(arguments)
    elif is_load_dataset(target):
        yield from _data_set(arguments)


def _defaults(target: Any) -> dict[str, Any]:
    """The defaults of arguments that are not written: the target's, and those that `**settings` are passed to."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (ValueError, TypeError):
        return {}
    own = {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
    goes_on = inspect.isclass(target) and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    bases = [base for base in target.__mro__[1:] if "__init__" in vars(base)] if goes_on else []
    return {**(_defaults(bases[0]) if bases else {}), **own}


def _full_name_of(target: Any) -> str:
    return _full_name(target) if isinstance(getattr(target, "__qualname__", None), str) else ""


def _only(target: Any) -> list[str] | None:
    method = _listed_method(target)
    names = METHODS[method] if method else FUNCTIONS.get(_full_name_of(target))
    return None if names is None else names.split()


def _refused(package: str, name: str, value: Any) -> str | None:
    if name in _NEVER.get(package, ()):
        return f"'{name}' can load code or write files; omit it"
    if package in ("datasets", "timm", "transformers") and name.startswith("_"):
        return f"'{brief(name)}' is private to {package}; omit it"
    if package == "transformers" and name.endswith("_implementation"):
        strange = [text for text in _texts(value) if text not in _IMPLEMENTATIONS]
        return f"a repository's code is not loaded; one of: {', '.join(_IMPLEMENTATIONS)}" if strange else None
    if package in ("timm", "transformers") and isinstance(value, str) and ":" in value.strip()[:12]:
        source = value.strip().partition(":")[0].lower().replace("_", "-")
        known = source in ("hf-hub", "local-dir", "hf", "http", "https", "file")
        return "a repository or folder can hold code; name a model that the package has" if known else None
    return None


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value, keys excepted."""
    if isinstance(value, str | os.PathLike):
        yield os.fspath(value)
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _texts(inner)


def _download(arguments: Mapping[str, Any], trust: Trust) -> Iterator[tuple[str, str]]:
    """A download writes below `root`: only into the project, or a folder that no recipe can choose."""
    root = arguments.get("root", "")
    if not arguments.get("download") or root is UNKNOWN or root is None:
        return
    path = Path(str(root))
    here = directory()
    folders = (here, *trust.own)
    inside = any(Path(os.path.normpath(here / path)).is_relative_to(folder) for folder in folders)
    if not inside or any(part.startswith((".", "~")) and part not in (".", "..") for part in path.parts):
        yield (
            "root",
            f"downloads go into the project's own folders, not '{brief(str(root))}'; write root: data, or a link of "
            "that name",
        )


def _timm_model(arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    name = arguments.get("model_name", UNKNOWN)
    if name is not UNKNOWN and not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_.-]+", name)):
        yield "model_name", "a repository or folder can hold code; name a model that the package has, as in resnet50"


def _data_set(arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    path = arguments.get("path", UNKNOWN)
    if path is not UNKNOWN and not (isinstance(path, str) and (path in _SAFE_BUILDERS or _is_source(path))):
        formats = ", ".join(_SAFE_BUILDERS)
        shown = brief(str(path))
        yield (
            "path",
            f"'{shown}' is neither OWNER/NAME on the hub, a folder, nor a format that holds no code: {formats}",
        )
    for name in ("path", "data_dir", "data_files"):
        for text in _texts(arguments.get(name)):
            if fault := foreign_path(text) or unreadable(text):
                yield name, f"'{brief(text)}' {fault}"
    if fault := outdated():
        yield "", fault


def _is_source(path: str) -> bool:
    """Whether a path is OWNER/NAME or a folder, and not one of datasets' own readers in another spelling."""
    bare = os.path.normpath(path.removeprefix("hf://datasets/").removeprefix("hf://"))
    return "/" in bare or ("/" in path and "://" not in path and not _is_reader(bare))


def _is_reader(name: str) -> bool:
    """Whether datasets has a reader of this name, such as `pandas`, which unpickles."""
    readers = packaged_readers()
    return readers is None or name in readers


# ---------------------------------------------------------------------- the list, for people


def listed(allow: tuple[str, ...] = ()) -> Iterator[str]:
    """What a recipe may name, a line each, for `launcher check --allowed`.

    Args:
        allow: What the user's project allows besides.
    """
    yield "classes:"
    for classes in CLASSES:
        bases = " or ".join(dict.fromkeys(base.rpartition(".")[2] for base in classes.bases))
        but_not = f", but not {', '.join(classes.but_not)}" if classes.but_not else ""
        yield f"  {classes.module}.*{f'  of kind {bases}' if bases else ''}{but_not}"
    yield "functions:"
    for module, names in BUILDERS.items():
        yield f"  {module}: {', '.join(names.split())}"
    for name, arguments in FUNCTIONS.items():
        yield f"  {name}{f'  with {arguments}' if arguments else ''}"
    yield "methods of listed classes:"
    for (module, name), arguments in METHODS.items():
        yield f"  {module}.*.{name}{f'  with {arguments}' if arguments else ''}"
    yield "never as an argument:"
    for package, refused in _NEVER.items():
        yield f"  {package}: {', '.join(sorted(refused))}"
    yield "  datasets, timm, transformers: what begins with '_'"
    yield "besides:"
    yield "  what your own Python files define: beside or below the recipe; in its project (the nearest folder above"
    yield "  with a pyproject.toml or .git) where you work in it; or named by [tool.launcher] code in pyproject.toml"
    yield f"  what --allow names, or [tool.launcher] allow in pyproject.toml: {', '.join(allow) or 'nothing here'}"
