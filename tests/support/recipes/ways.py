"""Ways to step: what people bring, and for each the loop that one writes by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import ExponentialLR, StepLR
from torch.utils.data import Dataset

STEPS = 20
SIZE, BATCH = 20, 8  # 8, 8 and 4 samples


class Points(Dataset[tuple[Tensor, Tensor]]):
    """20 rows of 4 numbers and a curve through them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(SIZE, 4, generator=generator, dtype=torch.float64)
        self.y = self.x.sum(1, keepdim=True).sin()

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class Stack(nn.Module):
    """An embedding, two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.ones(4))
        self.embed = nn.Linear(4, 6)
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.head = nn.Linear(6, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x * self.scale).tanh()
        for block in self.blocks:
            x = x + block(x).tanh()
        out: Tensor = self.head(x)
        return out


class Tabled(nn.Module):
    """A table of rows, of which a batch may use none; and a parameter of nothing."""

    def __init__(self, sparse: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(3, 4, padding_idx=0, sparse=sparse)
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.head = nn.Linear(4, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        rows = ((x[:, 0] > 0).long() + (x[:, 1] > 0).long()) * (x[:, 2] > 0)
        out: Tensor = self.head(self.table(rows)) + self.nothing.sum()
        return out


def tied() -> nn.Module:
    """One of which two layers are one."""
    stack = Stack()
    stack.embed, stack.head = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
    stack.blocks = nn.ModuleList()
    stack.head.weight, stack.head.bias = stack.embed.weight, stack.embed.bias
    return stack


class Two(nn.Module):
    """Two networks that work against each other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.critic = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.BatchNorm1d(6), nn.Linear(6, 1)).double()
        self.generator = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 4)).double()
        self.eval()  # which training ends: batch statistics would depend on how a step is cut

    def train(self, mode: bool = True) -> Two:
        """Stays as it is."""
        return super().train(False)


def samples(batch: Any) -> int:
    """What a batch counts."""
    return len(batch[0])


def critic(model: Any, batch: Any, at: Any) -> Mapping[str, Any]:
    """Tells the data from what the generator makes."""
    real, fake = model.critic(batch[0]), model.critic(model.generator(batch[1]).detach())
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    judge = functional.binary_cross_entropy_with_logits
    return {"loss": judge(real, ones) + judge(fake, zeros), "sure": (real > 0).double().mean()}


def generator(model: Any, batch: Any, at: Any) -> Mapping[str, Any]:
    """Wants to be taken for the data."""
    fake = model.critic(model.generator(batch[1]))
    return {"loss": functional.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))}


class Sam(Optimizer):
    """Sharpness-aware minimisation as it goes around: the closure makes the second gradients.

    Its `state_dict` says nothing of the one inside, whose momentum is all that there is to keep.
    """

    def __init__(self, params: Any, lr: float = 0.1, rho: float = 0.05):
        super().__init__(params, {"lr": lr, "rho": rho})
        self.base = SGD(self.param_groups, lr=lr, momentum=0.9)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        """Up the hill, the gradients there, back, and down with these."""
        assert closure is not None, "Sam requires closure"
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        norm = torch.stack([weight.grad.norm() for weight in weights]).norm()
        ups = [weight.grad * (self.param_groups[0]["rho"] / norm) for weight in weights]
        for weight, up in zip(weights, ups, strict=True):
            weight.data.add_(up)  # which no version counter tells
        closure()
        for weight, up in zip(weights, ups, strict=True):
            weight.data.sub_(up)
        self.base.step()


class Divided(SGD):
    """Each rank updates its share of the parameters, has the momentum of these alone, and sends them to the others."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        """Its own, and what comes from the others."""
        size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        kept = [weight.grad for weight in weights]
        for number, weight in enumerate(weights):
            weight.grad = weight.grad if number % size == rank else None
        super().step()
        for number, (weight, grad) in enumerate(zip(weights, kept, strict=True)):
            weight.grad = grad
            if size > 1:
                dist.broadcast(weight, number % size)


class Lookahead(Optimizer):
    """A wrapper whose state is its own: slow weights, every third step."""

    def __init__(self, optimizer: Optimizer, k: int = 3):
        self.optimizer, self.k, self.steps = optimizer, k, 0
        self.slow = [weight.detach().clone() for group in optimizer.param_groups for weight in group["params"]]
        super().__init__(optimizer.param_groups, {})
        self.param_groups = optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        """The inner step, and now and then back to halfway."""
        self.optimizer.step()
        self.steps += 1
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for slow, weight in zip(self.slow, weights, strict=True):
            if self.steps % self.k == 0:
                slow.lerp_(weight, 0.5)
                weight.copy_(slow)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The inner one's."""
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """No param_groups of torch's in it."""
        return {"inner": self.optimizer.state_dict(), "slow": self.slow, "steps": self.steps}

    def load_state_dict(self, state_dict: Any) -> None:
        """Takes it up."""
        self.optimizer.load_state_dict(state_dict["inner"])
        self.param_groups = self.optimizer.param_groups
        self.slow, self.steps = [slow.clone() for slow in state_dict["slow"]], state_dict["steps"]


def shrink(model: Any, at: Any) -> None:
    """After a step: keeps the head small, and the less the later."""
    model.head.weight.clamp_(-0.3 - at.step / 100, 0.3 + at.step / 100)


@torch.no_grad()
def decay(model: Any, at: Any) -> None:
    """After a step: makes the generator's first layer a little smaller."""
    model.generator[0].weight.mul_(0.99)


class Target:
    """After a step: a second copy of the head follows; it is kept, and pulls back."""

    def __init__(self) -> None:
        self.weight: Tensor | None = None

    def __call__(self, model: Any, at: Any) -> None:
        weight = model.head.weight
        self.weight = weight.clone() if self.weight is None else self.weight.lerp(weight, 0.1)
        weight.lerp_(self.weight, 0.5)

    def state_dict(self) -> dict[str, Any]:
        """The copy."""
        return {"weight": self.weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes it up."""
        self.weight = state["weight"]


def shaken(model: Any, at: Any) -> None:
    """After a step: noise, the same on every rank."""
    model.head.bias.add_(torch.randn(1, dtype=torch.float64), alpha=0.01)


class Looked:
    """After an evaluation: a number that counts, one that is drawn, and two figures."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, model: Any, at: Any, scores: Mapping[str, Any]) -> Mapping[str, Any]:
        from matplotlib.figure import Figure

        assert not model.training
        assert "loss" in scores
        self.times += 1
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([0, 1])
        return {"times": self.times, "drawn": torch.rand(1), "grey": torch.ones(2, 3), "plot": figure}

    def state_dict(self) -> dict[str, Any]:
        """How often."""
        return {"times": self.times}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes it up."""
        self.times = state["times"]


def moves(model: Any, at: Any, scores: Any) -> None:
    """Must not."""
    model.scale.add_(1.0)


def gives_text(model: Any, at: Any, scores: Any) -> dict[str, str]:
    """Neither a number nor a figure."""
    return {"words": "many"}


def gives_a_number(model: Any, at: Any, scores: Any) -> float:
    """Without a name."""
    return 1.0


def renames(model: Any, at: Any, scores: Any) -> dict[str, float]:
    """With the name of something else."""
    return {"loss": 1.0}


class Turning(nn.Module):
    """With complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.ones(4, 1, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.turn.dtype) @ self.turn).abs()


class Flat(nn.Module):
    """Without layers in a stack."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(4, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.only(x)
        return out


# ---------------------------------------------------------------------- by hand

Batch = tuple[Tensor, Tensor]
Loop = Callable[[], list[float]]


def batches() -> Iterator[tuple[int, Batch]]:
    """The run's steps with what they read."""
    points = Points()
    for step in range(STEPS):
        first = step % 3 * BATCH
        yield step, (points.x[first : first + BATCH], points.y[first : first + BATCH])


def named(model: nn.Module, *starts: str) -> list[Tensor]:
    """The parameters whose names begin so."""
    return [parameter for name, parameter in model.named_parameters() if name.startswith(starts)]


def loop(
    model: nn.Module,
    step: Callable[[int, Batch], Tensor | float],
    after: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Each step's loss."""
    losses = []
    for number, batch in batches():
        losses.append(float(step(number, batch)))
        after(number)
    return losses


def plain(
    model: nn.Module, *optimizers: Optimizer, clip: float | None = None, norm: float | None = None
) -> Callable[[int, Batch], Tensor]:
    """Zero, forward, loss, backward, and a step of each."""

    def step(number: int, batch: Batch) -> Tensor:
        model.zero_grad()
        loss = functional.mse_loss(model(batch[0]), batch[1])
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_value_(model.parameters(), clip)
        if norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), norm)
        for optimizer in optimizers:
            optimizer.step()
        return loss.detach()

    return step


def several() -> list[float]:
    model = Stack()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    rest = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    first, second = SGD(matrices, lr=0.05, momentum=0.9), Adam(rest, lr=0.01)
    schedules = [StepLR(first, 4, 0.5), ExponentialLR(second, 0.9)]

    def after(step: int) -> None:
        for schedule in schedules:
            schedule.step()

    return loop(model, plain(model, first, second), after)


def layered() -> list[float]:
    model, groups = Stack(), []
    depths = {"scale": 0, "embed": 0, "blocks.0": 1, "blocks.1": 2, "head": 3}
    for name, depth in depths.items():
        for parameter in named(model, name):
            decay = 0.1 if parameter.ndim >= 2 else 0.0
            groups.append({"params": [parameter], "lr": 0.01 * 0.5 ** (3 - depth), "weight_decay": decay})
    return loop(model, plain(model, AdamW(groups)))


def frozen() -> list[float]:
    model = Stack()
    until = {"blocks.0": 5, "head.bias": 6, "embed": STEPS, "scale": 0, "blocks.1": 0, "head.weight": 0}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    optimizer = AdamW([{"params": named(model, *until)}], lr=0.01, weight_decay=0.1)
    step = plain(model, optimizer)

    def thawing(number: int, batch: Batch) -> Tensor:
        for name, thaws in until.items():
            for parameter in named(model, name):
                parameter.requires_grad_(number >= thaws)
        return step(number, batch)

    return loop(model, thawing)


def clipped() -> list[float]:
    model = Stack()
    return loop(model, plain(model, SGD(model.parameters(), lr=0.1), clip=0.05))


def afterwards(function: Callable[[Any, Any], None]) -> list[float]:
    from launcher.objective.run_length import At

    model = Stack()

    @torch.no_grad()
    def after(step: int) -> None:
        function(model, At(step))

    return loop(model, plain(model, SGD(model.parameters(), lr=0.1)), after)


def closed(make: Callable[[Any], Optimizer], before: bool) -> list[float]:
    model = Stack()
    optimizer: Any = make(model.parameters())

    def step(number: int, batch: Batch) -> float:
        losses = []

        @torch.enable_grad()
        def closure() -> Tensor:
            model.zero_grad()
            loss = functional.mse_loss(model(batch[0]), batch[1])
            loss.backward()
            losses.append(loss.item())
            return loss

        if before:
            closure()
        optimizer.step(closure)
        return losses[0]

    return loop(model, step)


def tabled(**clipping: float) -> list[float]:
    model = Tabled(sparse=False)
    return loop(model, plain(model, SGD(model.parameters(), lr=0.1), **clipping))


def against(rests: int = 0, every: int = 1) -> list[float]:
    """Two losses in turns, of which the first trains nothing until a step; the second's is taken every few steps.

    Its learning rate is halved after every two of its own steps, and what is called after a step is called after each.
    """
    model = Two()
    optimizers = [Adam(model.critic.parameters(), lr=0.01), Adam(model.generator.parameters(), lr=0.02)]

    def step(number: int, batch: Batch) -> float:
        total = 0.0
        for function, optimizer in zip((critic, generator), optimizers, strict=True):
            if function is generator and (number + 1) % every:
                continue
            model.zero_grad()
            loss = function(model, batch, None)["loss"]
            loss.backward()
            if function is not critic or number >= rests:
                optimizer.step()
            total += loss.item()
        if every > 1:
            optimizers[1].param_groups[0]["lr"] = 0.02 * 0.5 ** ((number + 1) // (2 * every))
            decay(model, None)
        return total

    return loop(model, step)


def wrapped() -> list[float]:
    model = Stack()
    return loop(model, plain(model, Lookahead(Adam(model.parameters(), lr=0.02))))


def divided() -> list[float]:
    model = Stack()
    return loop(model, plain(model, SGD(model.parameters(), lr=0.05, momentum=0.9)))


SEVERAL = (
    "optimizer={matrices: {_target_: SGD, lr: 0.05, momentum: 0.9, _params_: dim >= 2}, "
    "rest: {_target_: Adam, lr: 0.01}}",
    "scheduler={matrices: {_target_: StepLR, step_size: 4, gamma: 0.5}, rest: {_target_: ExponentialLR, gamma: 0.9}}",
)
GROUPS = "_groups_: {dim>=2: {weight_decay: 0.1}, '*': {weight_decay: 0.0}}"
TURNS = (
    "model={_target_: ways.py:Two}",
    "optimizer={critic: {_target_: Adam, lr: 0.01}, generator: {_target_: Adam, lr: 0.02}}",
    "train.step={critic: ways.py:critic, generator: ways.py:generator}",
    "loss=null",
)
NOW_AND_THEN = (
    *TURNS[:2],
    "train.step={critic: ways.py:critic, generator: {_target_: ways.py:generator, _every_: 3 steps}}",
    "scheduler={generator: {_target_: StepLR, step_size: 2, gamma: 0.5, _every_: 3 steps}}",
    "train.after_step=ways.py:decay",
    "loss=null",
)
WAYS: dict[str, tuple[tuple[str, ...], Loop]] = {
    "several": (SEVERAL, several),
    "layers": ((f"optimizer={{_target_: AdamW, lr: 0.01, _layer_decay_: 0.5, {GROUPS}}}",), layered),
    "frozen": (
        (
            "optimizer={_target_: AdamW, lr: 0.01, weight_decay: 0.1}",
            "train.freeze={blocks.0.*: 5 steps, head.bias: 2 epochs, embed.*: always}",
        ),
        frozen,
    ),
    "clipped": (("train.clip_grad_value=0.05",), clipped),
    "clipped rows": (("model={_target_: ways.py:Tabled}", "train.clip_grad_value=0.05"), lambda: tabled(clip=0.05)),
    "short rows": (("model={_target_: ways.py:Tabled}", "train.clip_grad_norm=0.2"), lambda: tabled(norm=0.2)),
    "after": (("train.after_step=ways.py:shrink",), partial(afterwards, shrink)),
    "target": (("train.after_step={_target_: ways.py:Target}",), lambda: afterwards(Target())),
    "LBFGS": (
        ("optimizer={_target_: LBFGS, lr: 0.3, max_iter: 2, history_size: 2, line_search_fn: strong_wolfe}",),
        lambda: closed(lambda p: torch.optim.LBFGS(p, 0.3, 2, history_size=2, line_search_fn="strong_wolfe"), False),
    ),
    "SAM": (
        ("optimizer={_target_: ways.py:Sam, lr: 0.05, _closure_: true}",),
        lambda: closed(lambda parameters: Sam(parameters, lr=0.05), True),
    ),
    "turns": (TURNS, against),
    "resting": ((*TURNS, "train.freeze={critic.*: 5 steps}"), lambda: against(rests=5)),
    "divided": (("optimizer={_target_: ways.py:Divided, lr: 0.05, momentum: 0.9}",), divided),
    "now and then": (NOW_AND_THEN, lambda: against(every=3)),
    "Lookahead": (("optimizer={_target_: ways.py:Lookahead, optimizer: {_target_: Adam, lr: 0.02}}",), wrapped),
}
