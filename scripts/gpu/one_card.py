"""Ranks without a GPU of their own: python -m torch.distributed.run … one_card.py [--cpu] OVERRIDE …

NCCL refuses two ranks on one card, so they speak over gloo there; one rank alone speaks over NCCL all the same, which
Accelerate would leave out. The rest is the run's own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from parts import Rows

import launcher
from launcher.device import device


def main() -> int:
    """Trains as this rank."""
    cpu, overrides = "--cpu" in sys.argv, [word for word in sys.argv[1:] if "=" in word]
    shares = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not cpu and shares:
        join = dist.init_process_group

        def over_gloo(backend: Any = None, **settings: Any) -> None:
            settings.pop("device_id", None)
            join("gloo", **settings)

        dist.init_process_group = over_gloo
        device.check_gpus = lambda taken: None
        os.environ["LOCAL_RANK"] = "0"  # the card that all have
    run_dir = os.environ["GPU_CHECK_RUN"]
    recipe = Path(__file__).parent / "steps.yaml"
    result = launcher.train(recipe, *overrides, run_dir=run_dir, cpu=cpu, output="quiet", train=Rows())
    if not cpu and dist.is_available() and not shares:
        dist.init_process_group("nccl", init_method="tcp://127.0.0.1:29511", rank=0, world_size=1)
        alone = _over_nccl(result.model)
        dist.destroy_process_group()
        print(f"over NCCL: {'the same' if alone else 'DIFFERENT'}")
        return 0 if alone else 1
    return 0


def _over_nccl(model: Any) -> bool:
    """Whether DDP over NCCL in a world of one gives the gradients of the bare model."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    inputs = torch.randn(8, 64, device="cuda")
    gradients = []
    for module in (model, DistributedDataParallel(model, device_ids=[torch.cuda.current_device()])):
        module.zero_grad()
        module(inputs).square().sum().backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    return all(torch.allclose(one, other) for one, other in zip(*gradients, strict=True))


if __name__ == "__main__":
    sys.exit(main())
