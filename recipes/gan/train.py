"""A GAN as a script of your own: the loop stays yours, the rest is `launcher run`. recipe.yaml is one as a recipe.

    launcher run recipes/gan/train.py
    launcher run --cpu --processes 2 --run-dir runs/gan --max-restarts 2 recipes/gan/train.py --steps 500
    launcher submit --gpus-per-node 2 --time 10 run recipes/gan/train.py --steps 500

Killed at any time (kill -9 too) and started again in the same folder, it ends with the same weights.
"""

import argparse
import itertools
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from launcher.scripting import StepSampler, checkpoints, reached, run_dir, stop_requested


def ring(samples: int = 2000) -> torch.Tensor:
    """Points on a circle: what the generator is to learn, shape (samples, 2)."""
    angles = torch.rand(samples, generator=torch.Generator().manual_seed(0)) * 2 * torch.pi
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def network(inputs: int, outputs: int) -> nn.Module:
    """Two layers."""
    return nn.Sequential(nn.Linear(inputs, 32), nn.Tanh(), nn.Linear(32, outputs))


def agreed(request: bool) -> bool:
    """Whether any process requests it: all must save and end after the same step."""
    answer = torch.tensor(float(request))
    if dist.is_initialized():
        dist.all_reduce(answer, dist.ReduceOp.MAX)
    return bool(answer)


def main() -> None:
    """Trains until the last step, or until it is asked to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=500)
    steps = parser.parse_args().steps
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # under srun too, where `launcher submit` has started it
        dist.init_process_group("gloo")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    torch.manual_seed(0)
    points = ring()
    parts = {"generator": network(4, 2), "critic": network(2, 1)}
    optimizers = {name: torch.optim.Adam(part.parameters(), lr=1e-3) for name, part in parts.items()}
    begun = 0
    if found := checkpoints.load(run_dir() / "checkpoints"):
        begun = found.step
        for name, part in parts.items():
            part.load_state_dict(found.weights[name])
            optimizers[name].load_state_dict(found.training[name])
    shared = {name: DistributedDataParallel(part) if world > 1 else part for name, part in parts.items()}
    generator, critic = shared["generator"], shared["critic"]

    def save(step: int) -> None:
        if rank == 0:
            weights = {name: part.state_dict() for name, part in parts.items()}
            training = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
            checkpoints.save(run_dir() / "checkpoints", checkpoints.Snapshot(weights, training, {"step": step}))

    loss = nn.functional.binary_cross_entropy_with_logits
    sampler = StepSampler(points, global_batch_size=64, rank=rank, world_size=world, seed=0, drop_last=True)
    for step in itertools.count(begun):
        if step == steps or agreed(stop_requested()):
            break
        torch.manual_seed(step * world + rank)  # arithmetic, so that nothing of it must be saved
        real = points[torch.from_numpy(sampler.shares(step)[0].indices)]
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        fake = generator(torch.randn(len(real), 4))

        judged = critic(torch.cat([real, fake.detach()]))
        optimizers["critic"].zero_grad()
        loss(judged, torch.cat([ones, zeros])).backward()
        optimizers["critic"].step()

        optimizers["generator"].zero_grad()
        loss(critic(fake), ones).backward()
        optimizers["generator"].step()
        reached(step + 1)
        if (step + 1) % 100 == 0:
            save(step + 1)
    save(step)
    if rank == 0 and step == steps:
        torch.save(parts["generator"].state_dict(), run_dir() / "generator.pth")
        print(f"step {step}: saved {run_dir() / 'generator.pth'}")
    if dist.is_initialized():
        dist.barrier()  # rank 0 has saved
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
