"""The loops that people have: python loops.py NAME WORKLOAD [--in-order] [--full] [--device cuda]; or under torchrun.

Each is written as its own documentation writes it. `--full` logs the loss every 10 steps, evaluates and keeps a
checkpoint every 500; `--in-order` leaves the shuffling out, so that all contestants see the same batches.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import people
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler
from workloads import WORKLOADS, Workload

WORKERS = int(os.environ.get("BENCH_WORKERS", "0"))
LOG_EVERY, ACT_EVERY, EVALUATION_BATCHES = 10, 500, 20


def main() -> None:
    """Runs one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(LOOPS))
    parser.add_argument("workload", choices=list(WORKLOADS))
    parser.add_argument("--in-order", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.chdir(tempfile.mkdtemp(prefix="bench-"))
    LOOPS[options.name](WORKLOADS[options.workload], options)


def world() -> tuple[int, int]:
    """Rank and number of processes."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def loader_of(workload: Workload, in_order: bool, share: int = 1, **more: Any) -> DataLoader[Any]:
    """The loader that one writes first."""
    more |= {"collate_fn": workload.collate, "num_workers": WORKERS, "persistent_workers": WORKERS > 0}
    return DataLoader(workload.data(), batch_size=workload.batch // share, shuffle=not in_order, drop_last=True, **more)


def loader_of_ranks(workload: Workload, sampler: Any, size: int, *, pin_memory: bool = False) -> DataLoader[Any]:
    """The same with a sampler that deals out samples."""
    return DataLoader(
        workload.data(),
        batch_size=workload.batch // size,
        sampler=sampler,
        drop_last=True,
        collate_fn=workload.collate,
        num_workers=WORKERS,
        pin_memory=pin_memory,
        persistent_workers=WORKERS > 0,
    )


def endless(loader: DataLoader[Any], sampler: Any = None) -> Iterator[Any]:
    """Epoch after epoch."""
    epoch = 0
    while True:
        if sampler is not None:
            sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def adamw(model: nn.Module, workload: Workload, **more: Any) -> torch.optim.AdamW:
    """The optimizer of all."""
    return torch.optim.AdamW(model.parameters(), lr=workload.rate, weight_decay=0.01, **more)


def autocast(workload: Workload, device: str) -> Any:
    """bfloat16 where the workload wants it."""
    return torch.autocast(device, torch.bfloat16) if workload.precision == "bf16" else nullcontext()


def evaluate(model: nn.Module, workload: Workload, device: str) -> float:
    """The mean loss of the first batches of the validation set."""
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for number, (inputs, targets) in enumerate(DataLoader(workload.validation(), batch_size=workload.batch)):
            if number == EVALUATION_BATCHES:
                break
            total += nn.functional.cross_entropy(model(inputs.to(device)), targets.to(device), reduction="sum").item()
            count += targets.numel()
    model.train()
    return total / count


# ---------------------------------------------------------------------- by hand


def handwritten(workload: Workload, options: argparse.Namespace) -> None:
    """The loop of every tutorial; under torchrun with DistributedSampler and DDP."""
    size, sampler = _joined(options), None
    if size > 1:
        sampler = DistributedSampler(workload.data(), shuffle=not options.in_order, drop_last=True)
        loader: DataLoader[Any] = loader_of_ranks(workload, sampler, size, pin_memory=options.device == "cuda")
    else:
        loader = loader_of(workload, options.in_order, pin_memory=options.device == "cuda")
    trained(workload, options, endless(loader, sampler))


def trained(workload: Workload, options: argparse.Namespace, batches: Iterator[Any]) -> None:
    """The loop itself, over batches of whatever makes them."""
    rank, size = world()
    device = options.device
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    model: nn.Module = workload.model().to(device)
    bare = model
    if size > 1:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = adamw(model, workload)
    loss_fn = nn.CrossEntropyLoss()
    model.train()
    for step, (inputs, targets) in enumerate(batches, 1):
        inputs, targets = inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        optimizer.zero_grad()
        with autocast(workload, device):
            loss = loss_fn(model(inputs), targets)
        loss.backward()
        if workload.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), workload.clip)
        optimizer.step()
        if options.full and rank == 0:
            if step % LOG_EVERY == 0:
                print(f"step {step}: loss {loss.item():.4f}", flush=True)
            if step % ACT_EVERY == 0:
                print(f"step {step}: validation loss {evaluate(bare, workload, device):.4f}", flush=True)
                torch.save({"model": bare.state_dict(), "optimizer": optimizer.state_dict()}, f"step-{step}.pt")
        if step == options.steps:
            break
    if size > 1:
        dist.destroy_process_group()


def nanogpt(workload: Workload, options: argparse.Namespace) -> None:
    """Like nanoGPT's script: batches cut out of the text at random places."""
    windows = workload.data()._windows
    tokens = torch.cat([windows[:, 0], windows[-1, 1:]]).numpy()
    model = workload.model()
    optimizer = adamw(model, workload)
    model.train()
    context = windows.shape[1] - 1

    def get_batch() -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.randint(len(tokens) - context, (workload.batch,))
        x = torch.stack([torch.from_numpy(tokens[i : i + context].astype("int64")) for i in places])
        y = torch.stack([torch.from_numpy(tokens[i + 1 : i + 1 + context].astype("int64")) for i in places])
        return x, y

    inputs, targets = get_batch()
    for _ in range(options.steps):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        inputs, targets = get_batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), workload.clip or 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def moved(part: torch.Tensor, device: str) -> torch.Tensor:
    """On the device, from pinned memory, so that nobody waits for the copy."""
    return part.pin_memory().to(device, non_blocking=True) if device == "cuda" else part


def floor(workload: Workload, options: argparse.Namespace) -> None:
    """Tensors sliced in place, a fused optimizer, and nothing else."""
    data, device = workload.data(), options.device
    model = workload.model().to(device)
    optimizer = adamw(model, workload, fused=True)
    size, batch = len(data), workload.batch  # type: ignore[arg-type]
    tensors = getattr(data, "tensors", None)
    model.train()
    step = 0
    while step < options.steps:
        order = torch.arange(size) if options.in_order else torch.randperm(size)
        for start in range(0, size - batch + 1, batch):
            rows = order[start : start + batch]
            batch_parts = [one[rows] for one in tensors] if tensors else data.get_batch(rows)  # type: ignore[attr-defined]
            inputs, targets = (moved(part, device) for part in batch_parts)
            with autocast(workload, device):
                loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            if workload.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), workload.clip)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step == options.steps:
                break


# ---------------------------------------------------------------------- by hand, over shards of others


def webdataset(workload: Workload, options: argparse.Namespace) -> None:
    """Over webdataset's pipeline of the same tars, shuffled by shards and in a buffer of a thousand."""
    import webdataset as wds

    size = _joined(options)
    tars = sorted(map(str, people.tars().glob("*.tar")))
    splitter = wds.split_by_node if size > 1 else wds.single_node_only
    order = False if options.in_order else len(tars)
    pipeline = wds.WebDataset(tars, shardshuffle=order, nodesplitter=splitter, seed=0)
    pipeline = pipeline if options.in_order else pipeline.shuffle(1000)
    samples = pipeline.decode().to_tuple("x.npy", "cls").map(people.as_tensors)
    how = {"batch_size": workload.batch // size, "drop_last": True, "persistent_workers": WORKERS > 0}
    trained(workload, options, endless(wds.WebLoader(samples, num_workers=WORKERS, **how)))


def litdata(workload: Workload, options: argparse.Namespace) -> None:
    """Over litdata's own format and loader."""
    from litdata import StreamingDataLoader, StreamingDataset

    size = _joined(options)
    samples = StreamingDataset(str(people.chunks_of_litdata()), shuffle=not options.in_order, drop_last=True)
    how = {"batch_size": workload.batch // size, "persistent_workers": WORKERS > 0}
    trained(workload, options, endless(StreamingDataLoader(samples, num_workers=WORKERS, **how)))


def streaming(workload: Workload, options: argparse.Namespace) -> None:
    """Over mosaicml-streaming's own format and data set."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    class Pairs(StreamingDataset):  # type: ignore[misc]
        """Of what a model takes."""

        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            return torch.from_numpy(sample["x"].copy()), sample["y"]

    size = _joined(options)
    if world()[0] == 0:
        clean_stale_shared_memory()
    if size > 1:
        dist.barrier()
    batch = workload.batch // size
    samples = Pairs(local=str(people.shards_of_streaming()), shuffle=not options.in_order, batch_size=batch)
    how = {"batch_size": batch, "drop_last": True, "persistent_workers": WORKERS > 0}
    trained(workload, options, endless(DataLoader(samples, num_workers=WORKERS, **how)))


def _joined(options: argparse.Namespace) -> int:
    """The number of processes, which know of one another now."""
    size = world()[1]
    if size > 1:
        dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    return size


# ---------------------------------------------------------------------- with a framework


def accelerate(workload: Workload, options: argparse.Namespace) -> None:
    """Accelerate's own example loop: everything prepared, a scheduler beside the optimizer."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=options.device == "cpu", mixed_precision=workload.precision)
    model = workload.model()
    optimizer = adamw(model, workload)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    loader = loader_of(workload, options.in_order, accelerator.num_processes)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    loss_fn = nn.CrossEntropyLoss()
    model.train()
    for step, (inputs, targets) in enumerate(endless(loader), 1):
        with accelerator.accumulate(model):
            loss = loss_fn(model(inputs), targets)
            accelerator.backward(loss)
            if accelerator.sync_gradients and workload.clip is not None:
                accelerator.clip_grad_norm_(model.parameters(), workload.clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if step == options.steps:
            break
    accelerator.end_training()


def ignite(workload: Workload, options: argparse.Namespace) -> None:
    """PyTorch-Ignite's engine around the loop's body."""
    import ignite.distributed as idist
    from ignite.engine import Engine

    size = world()[1]
    with idist.Parallel(backend="gloo" if size > 1 and options.device == "cpu" else "nccl" if size > 1 else None) as _:
        device = torch.device(options.device)
        loader = idist.auto_dataloader(
            workload.data(),
            batch_size=workload.batch,
            shuffle=not options.in_order,
            drop_last=True,
            collate_fn=workload.collate,
            num_workers=WORKERS,
            persistent_workers=WORKERS > 0,
        )
        model = idist.auto_model(workload.model())
        optimizer = idist.auto_optim(adamw(model, workload))
        loss_fn = nn.CrossEntropyLoss()

        def step(engine: Engine, batch: Any) -> float:
            inputs, targets = (one.to(device, non_blocking=True) for one in batch)
            model.train()
            optimizer.zero_grad()
            with autocast(workload, options.device):
                loss = loss_fn(model(inputs), targets)
            loss.backward()
            if workload.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), workload.clip)
            optimizer.step()
            return float(loss.item())

        Engine(step).run(loader, max_epochs=1 + options.steps // len(loader))


def lightning(workload: Workload, options: argparse.Namespace) -> None:
    """Lightning's Trainer; without `--full` with all that can be turned off turned off."""
    import lightning as L
    from lightning.pytorch.loggers import CSVLogger

    class Task(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = workload.model()
            self.loss_fn = nn.CrossEntropyLoss()

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            loss = self.loss_fn(self.model(batch[0]), batch[1])
            if options.full:
                self.log("loss", loss)
            return loss

        def validation_step(self, batch: Any, number: int) -> None:
            self.log("validation_loss", self.loss_fn(self.model(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adamw(self, workload)

    rank, size = world()
    loader = loader_of(workload, options.in_order, size)
    if options.in_order and size > 1:  # its own sampler would shuffle
        sampler = DistributedSampler(workload.data(), size, rank, shuffle=False, drop_last=True)
        loader = loader_of_ranks(workload, sampler, size)
    full: dict[str, Any] = {
        "logger": CSVLogger("."),
        "log_every_n_steps": LOG_EVERY,
        "val_check_interval": ACT_EVERY,
        "check_val_every_n_epoch": None,
        "limit_val_batches": EVALUATION_BATCHES,
    }
    trainer = L.Trainer(
        max_steps=options.steps,
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=size,
        strategy="ddp" if size > 1 else "auto",
        precision="bf16-mixed" if workload.precision == "bf16" else "32-true",
        gradient_clip_val=workload.clip,
        enable_checkpointing=options.full,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=not options.in_order,
        **(full if options.full else {"logger": False}),
    )
    held_back = DataLoader(workload.validation(), batch_size=workload.batch) if options.full else None
    trainer.fit(Task(), loader, held_back)


def transformers(workload: Workload, options: argparse.Namespace) -> None:
    """The Trainer of transformers, around a model that returns its loss."""
    from transformers import Trainer, TrainingArguments

    class Task(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = workload.model()
            self.loss_fn = nn.CrossEntropyLoss()

        def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            outputs = self.model(inputs)
            return {"loss": self.loss_fn(outputs, labels), "logits": outputs}

    class Mappings(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __init__(self, data: Any) -> None:
            self.data = data

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            inputs, labels = self.data[index]
            return {"inputs": inputs, "labels": labels}

    full: dict[str, Any] = {
        "logging_steps": LOG_EVERY,
        "eval_strategy": "steps",
        "eval_steps": ACT_EVERY,
        "save_strategy": "steps",
        "save_steps": ACT_EVERY,
        "prediction_loss_only": True,
    }
    validation = torch.utils.data.Subset(workload.validation(), range(EVALUATION_BATCHES * workload.batch))
    arguments = TrainingArguments(
        output_dir=".",
        max_steps=options.steps,
        per_device_train_batch_size=workload.batch // world()[1],
        per_device_eval_batch_size=workload.batch,
        learning_rate=workload.rate,
        weight_decay=0.01,
        lr_scheduler_type="constant",
        max_grad_norm=workload.clip or 0.0,
        optim="adamw_torch",
        use_cpu=options.device == "cpu",
        bf16=workload.precision == "bf16",
        ddp_backend="gloo" if options.device == "cpu" and world()[1] > 1 else None,
        dataloader_drop_last=True,
        dataloader_num_workers=WORKERS,
        dataloader_persistent_workers=WORKERS > 0,
        remove_unused_columns=workload.collate is None,
        report_to=[],
        disable_tqdm=True,
        seed=0,
        **(full if options.full else {"logging_strategy": "no", "save_strategy": "no"}),
    )

    class SameOptimizer(Trainer):  # type: ignore[misc]
        """Its own would not decay norms and biases, nor save weights that are shared."""

        def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
            self.optimizer = adamw(self.model, workload)
            return self.optimizer

        def _save(self, output_dir: str, *_: Any, **__: Any) -> None:
            Path(output_dir).mkdir(exist_ok=True)
            torch.save(self.model.state_dict(), Path(output_dir, "pytorch_model.bin"))

    class InOrder(SameOptimizer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    kind = InOrder if options.in_order else SameOptimizer
    if workload.collate is None:
        kind(Task(), arguments, train_dataset=Mappings(workload.data()), eval_dataset=Mappings(validation)).train()
        return

    def collate(samples: list[Any]) -> dict[str, Any]:
        assert workload.collate is not None
        return dict(zip(("inputs", "labels"), workload.collate(samples), strict=True))

    kind(Task(), arguments, data_collator=collate, train_dataset=workload.data(), eval_dataset=validation).train()


LOOPS = {
    "handwritten": handwritten,
    "nanogpt": nanogpt,
    "floor": floor,
    "webdataset": webdataset,
    "litdata": litdata,
    "streaming": streaming,
    "accelerate": accelerate,
    "ignite": ignite,
    "lightning": lightning,
    "transformers": transformers,
}

if __name__ == "__main__":
    main()
