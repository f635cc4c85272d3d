"""What a key is called here that stands in the wrong place, or bears the name that another program gives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.recipe.keys import all_keys
from launcher.recipe.places import Path, dotted
from launcher.text import flat

# words of accelerate, Lightning, transformers, torchtune and hand-written loops
_OTHERS = {
    "optimizer.lr": ("lr", "learning_rate", "base_lr", "max_lr"),
    "optimizer.weight_decay": ("weight_decay", "wd"),
    "optimizer.betas": ("betas", "adam_beta1", "adam_beta2"),
    "data.global_batch_size": ("batch_size", "train_batch_size", "bs", "total_batch_size"),
    "data.micro_batch_size": (
        *("accumulate_grad_batches", "gradient_accumulation", "gradient_accumulation_steps", "grad_accum"),
        *("accumulation_steps", "per_device_train_batch_size", "per_device_batch_size", "accumulation"),
    ),
    "data.workers": ("num_workers", "dataloader_num_workers"),
    "data.collate": ("collate_fn", "data_collator"),
    "data.train": ("dataset", "train_dataset", "trainset", "train_data", "train_dataloader"),
    "data.validation": ("val", "valid", "val_dataset", "eval_dataset", "validation_dataset", "dev", "val_dataloader"),
    "train.epochs": ("epochs", "max_epochs", "num_epochs", "num_train_epochs", "n_epochs"),
    "train.steps": ("steps", "max_steps", "num_steps", "total_steps", "max_iters", "iterations"),
    "train.time": ("max_time",),
    "train.clip_grad_norm": ("max_grad_norm", "gradient_clip_val", "grad_clip", "clip_grad", "clip", "clip_norm"),
    "train.start_from": ("checkpoint", "pretrained", "init_from", "load_from", "weights", "ckpt_path"),
    "train.ema": ("ema", "ema_decay"),
    "evaluate.every": ("eval_every", "eval_steps", "eval_interval", "evaluation_strategy", "eval_strategy"),
    "evaluate.metrics": ("metrics", "compute_metrics"),
    "evaluate.best": ("early_stopping", "early_stop", "patience", "metric_for_best_model", "monitor"),
    "save.every": ("save_every", "save_steps", "save_interval", "checkpoint_every", "save_strategy"),
    "save.keep": ("save_total_limit", "save_top_k", "keep"),
    "track.every": ("log_every", "logging_steps", "log_interval", "log_every_n_steps"),
    "track.wandb": ("wandb", "logger", "report_to"),
    "track.tensorboard": ("tensorboard",),
    "device.precision": ("precision", "amp", "fp16", "bf16", "mixed_precision", "dtype"),
    "device.compile": ("compile", "torch_compile"),
    "launch.processes": ("processes", "gpus", "devices", "num_gpus", "num_processes", "nproc_per_node", "world_size"),
    "launch.nodes": ("nodes", "num_nodes", "num_machines", "nnodes"),
    "scheduler": ("lr_scheduler", "lr_scheduler_type", "sched"),
    "scheduler._warmup_": ("warmup", "warmup_steps", "num_warmup_steps", "warmup_ratio", "warmup_iters"),
    "loss": ("criterion", "loss_fn", "objective"),
    "model": ("net", "network", "module"),
    "optimizer": ("optim", "opt"),
    "seed": ("random_seed", "manual_seed"),
}


def elsewhere_called(path: Path) -> str:
    """The dotted key that other programs give this name; empty where none is known."""
    name = str(path[-1]).lower().replace("-", "_")
    return next((key for key, names in _OTHERS.items() if name in names and key != dotted(path)), "")


def belongs_at(path: Path, tree: Mapping[str, Any]) -> str:
    """The one dotted key that ends like an unknown one, of the schema or the recipe's own; empty where none does."""
    of_schema, of_recipe = list(all_keys()), [key for key, _ in flat(tree)]
    for keys in (of_schema, of_recipe):
        places = [key for key in keys if key.rpartition(".")[2] == str(path[-1]) and key != dotted(path)]
        if len(places) == 1:
            return places[0]
    return ""
