"""Optimizers of torch's and of people's own, schedules, clipping, groups, averages."""

from __future__ import annotations

from functools import partial
from typing import Any

import nets
import optimizers
import sets
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

from tests.brought.case import case

optim = torch.optim
deep = partial(nets.Deep)

# ---------------------------------------------------------------------- torch's

TORCHS: dict[str, Any] = {
    "momentum": partial(optim.SGD, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01),
    "Nesterov": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": partial(optim.Adam, lr=0.05, weight_decay=0.01),
    "Adam, amsgrad": partial(optim.Adam, lr=0.05, amsgrad=True, betas=(0.5, 0.6)),
    "AdamW": partial(optim.AdamW, lr=0.05),
    "AdamW, foreach": partial(optim.AdamW, lr=0.05, foreach=True),
    "AdamW, fused": partial(optim.AdamW, lr=0.05, fused=True),
    "Adamax": partial(optim.Adamax, lr=0.05),
    "NAdam": partial(optim.NAdam, lr=0.05),
    "RAdam": partial(optim.RAdam, lr=0.05),
    "Adagrad": partial(optim.Adagrad, lr=0.1, lr_decay=0.01),
    "Adadelta": partial(optim.Adadelta, lr=1.0),
    "RMSprop": partial(optim.RMSprop, lr=0.05, centered=True, momentum=0.5),
    "Rprop": partial(optim.Rprop, lr=0.05),
    "ASGD": partial(optim.ASGD, lr=0.1, t0=2),
    "Adafactor": partial(optim.Adafactor, lr=0.05),
    "upwards": partial(optim.SGD, lr=0.01, maximize=True),
}
for name, optimizer in TORCHS.items():
    case(f"optimizer: {name}", model=deep, optimizer=optimizer)
case(
    "optimizer: SparseAdam",
    model=partial(nets.Bag, kind="sparse alone"),
    data=sets.Tokens,
    optimizer=partial(optim.SparseAdam, lr=0.05),
)
case("optimizer: one that a function makes", optimizer=optimizers.switched)

# ---------------------------------------------------------------------- of people's own

for kind in (
    optimizers.Counts,
    optimizers.Signs,
    optimizers.Odd,
    optimizers.InGroup,
    optimizers.Lazy,
    optimizers.Sparse,
):
    case(f"own optimizer: {kind.__name__}", model=deep, optimizer=partial(kind, lr=0.05))
case("own optimizer: Lookahead", optimizer=partial(optimizers.Lookahead, lr=0.05))
halved = partial(schedules.StepLR, step_size=2, gamma=0.5)
for outer in (optimizers.Combined, optimizers.Nested):
    case(f"one inside another: {outer.__name__}", model=deep, optimizer=partial(outer, lr=0.05), scheduler=halved)
case("own optimizer: ScheduleFree", optimizer=partial(optimizers.ScheduleFree, lr=0.1))
case("own optimizer: ScheduleFree, begins evaluating", optimizer=partial(optimizers.ScheduleFree, lr=0.1, trains=False))
case("own optimizer: state in 32 bits", optimizer=partial(optimizers.Wide, lr=0.05), exact=1e-6)
case("own optimizer: a deque", optimizer=partial(optimizers.WithDeque, lr=0.05), worlds=(), refused=1)
case(
    "16 bits, state in 32",
    model=partial(nets.Lin, dtype=torch.bfloat16),
    optimizer=partial(optimizers.Wide, lr=0.05),
    exact=0.04,  # a loop by hand that cuts the batch into as many pieces rounds as often, to the same loss
)

# ---------------------------------------------------------------------- schedules

SCHEDULES: dict[str, Any] = {
    "steps": partial(schedules.StepLR, step_size=2, gamma=0.5),
    "milestones": partial(schedules.MultiStepLR, milestones=[2, 4], gamma=0.3),
    "exponential": partial(schedules.ExponentialLR, gamma=0.8),
    "cosine": partial(schedules.CosineAnnealingLR, T_max=6),
    "cosine, restarted": partial(schedules.CosineAnnealingWarmRestarts, T_0=2),
    "one cycle": partial(schedules.OneCycleLR, max_lr=0.2, total_steps=6),
    "cycles": partial(schedules.CyclicLR, base_lr=0.01, max_lr=0.2, step_size_up=2, cycle_momentum=False),
    "polynomial": partial(schedules.PolynomialLR, total_iters=6, power=2.0),
    "linear": partial(schedules.LinearLR, start_factor=0.1, total_iters=4),
    "constant": partial(schedules.ConstantLR, factor=0.5, total_iters=3),
    "by a function": partial(schedules.LambdaLR, lr_lambda=optimizers.slower),
    "by a factor": partial(schedules.MultiplicativeLR, lr_lambda=optimizers.factor),
}
for name, scheduler in SCHEDULES.items():
    case(f"schedule: {name}", optimizer=partial(optim.SGD, lr=0.1, momentum=0.5), scheduler=scheduler)
case("schedule: a function's", scheduler=optimizers.in_sequence)

# ---------------------------------------------------------------------- what surrounds a step

case("clipped", model=deep, clip=0.05)
case(
    "clipped, with class counts",
    model=nets.three,
    data=partial(sets.Cls, ignored=-100),
    loss=nn.CrossEntropyLoss,
    clip=0.05,
)
case(
    "groups by name",
    "optimizer={_target_: SGD, lr: 0.1, _groups_: {'*.bias': {lr: 0.01, weight_decay: 0.1}}}",
    optimizer=optimizers.in_groups,
)
case("an average of the weights beside", "train.ema=0.5", model=deep)
