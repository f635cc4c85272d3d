"""What torch documents of its own losses: nothing is known where other code than torch's runs."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from launcher.internals import has_hooks
from launcher.objective.reading import Reading


def known(function: Any, given: Collection[str] = ()) -> Reading | None:
    """What torch documents of its own loss; None where other code than torch's runs.

    Args:
        function: The loss.
        given: What it is called with besides its settings, by name: weights in a batch are none that a class has.
    """
    name, settings = _torch_name(function)
    kind = _OF_TORCH.get(name)
    if kind is None or "weight" in given or (name in _OVER_WEIGHTS and settings.get("weight") is not None):
        return None
    reduction, weight = settings.get("reduction", "mean"), settings.get("weight")
    why = "torch's own"
    if reduction == "sum":
        return Reading("sum", found="known", why=why)
    if name == "kl_div" and reduction == "batchmean":
        return Reading("rows", found="known", why=why)
    if kind == "kept":
        index = settings.get("ignore_index", -100)
        counted = "kept" if weight is None else "weights"
        return Reading(counted, ignored=index, weights=weight, found="known", why=why)
    return Reading(kind, found="known", why=why)


def reduction_of(function: Any) -> str:
    """How torch's own loss puts its entries together; empty of any other."""
    name, settings = _torch_name(function)
    return str(settings.get("reduction", "mean")) if name else ""


def sums_itself(function: Any) -> bool:
    """Whether torch's own loss is called for a sum: its mean over nothing but ignored targets is NaN."""
    return _OF_TORCH.get(_torch_name(function)[0]) == "kept"


def summing(function: Any) -> Any:
    """The same loss, giving the sum; torch's own alone."""
    if isinstance(function, nn.Module):
        function = copy.copy(function)  # the one that was passed in stays a mean
        function.reduction = "sum"
        return function
    return functools.partial(function, reduction="sum")


_OF_TORCH = {
    **dict.fromkeys(("cross_entropy", "nll_loss"), "kept"),
    **dict.fromkeys(("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "poisson_nll_loss"), "elements"),
    **dict.fromkeys(("binary_cross_entropy", "binary_cross_entropy_with_logits", "gaussian_nll_loss"), "elements"),
    **dict.fromkeys(("kl_div", "soft_margin_loss", "hinge_embedding_loss", "margin_ranking_loss"), "elements"),
    **dict.fromkeys(("multi_margin_loss", "multilabel_margin_loss", "multilabel_soft_margin_loss"), "rows"),
    "cosine_embedding_loss": "rows",
    "triplet_margin_loss": "samples",
}
_OVER_WEIGHTS = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")  # a mean over the weights, where given
_MODULES = {
    "CrossEntropyLoss": "cross_entropy",
    "NLLLoss": "nll_loss",
    "NLLLoss2d": "nll_loss",
    "MSELoss": "mse_loss",
    "L1Loss": "l1_loss",
    "SmoothL1Loss": "smooth_l1_loss",
    "HuberLoss": "huber_loss",
    "PoissonNLLLoss": "poisson_nll_loss",
    "BCELoss": "binary_cross_entropy",
    "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
    "GaussianNLLLoss": "gaussian_nll_loss",
    "KLDivLoss": "kl_div",
    "SoftMarginLoss": "soft_margin_loss",
    "HingeEmbeddingLoss": "hinge_embedding_loss",
    "MarginRankingLoss": "margin_ranking_loss",
    "MultiMarginLoss": "multi_margin_loss",
    "MultiLabelMarginLoss": "multilabel_margin_loss",
    "MultiLabelSoftMarginLoss": "multilabel_soft_margin_loss",
    "CosineEmbeddingLoss": "cosine_embedding_loss",
    "TripletMarginLoss": "triplet_margin_loss",
}


def _torch_name(function: Any) -> tuple[str, Mapping[str, Any]]:
    """The function of torch.nn.functional that runs, and its settings; empty where another does."""
    if isinstance(function, nn.Module):
        cls = next((base for base in type(function).__mro__ if "forward" in vars(base)), nn.Module)
        is_torch = cls.__module__ == "torch.nn.modules.loss" and type(function).__call__ is nn.Module.__call__
        if not is_torch or "forward" in vars(function) or has_hooks(function):
            return "", {}
        names = ("reduction", "weight", "ignore_index")
        return _MODULES.get(cls.__name__, ""), {key: getattr(function, key) for key in names if hasattr(function, key)}
    settings: Mapping[str, Any] = {}
    if isinstance(function, functools.partial) and not function.args:
        settings, function = function.keywords, function.func
    name = getattr(function, "__name__", "")
    is_torch = inspect.isfunction(function) and function is getattr(nn.functional, name, None)
    old = {"size_average", "reduce"} & set(settings)
    return (name, settings) if is_torch and not old else ("", {})
