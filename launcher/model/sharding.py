"""3: model. A model that no process holds whole: torch's `fully_shard` around its blocks, and around the rest.

Each process keeps some rows of every parameter, of its gradient and of what the optimizer keeps of it. A block is put
together when it is called, and taken apart again.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from launcher.device.device import Device
from launcher.errors import UsageError
from launcher.model.adapt import Base, own_state
from launcher.model.blocks import Blocks, blocks_of
from launcher.model.kinds import is_sharded
from launcher.model.rows import Rows, read_whole, rows_of, shape_of, take_rows
from launcher.recipe import schema
from launcher.world.cleanup import afterwards

_HALF = (torch.float16, torch.bfloat16)


class UnfitError(Exception):
    """A module cannot be sharded; the message says why, and the remedy.

    Args:
        message: Says so.
        key: Of the recipe.
    """

    def __init__(self, message: str, key: str = "model"):
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Mesh:
    """Which processes share a model, and which have the same rows of it.

    Attributes:
        devices: torch's own mesh.
        groups: How many groups of processes have the whole model between them.
        per_group: Processes of a group.
        rank: This process's place in its group.
        group_rank: Which of the groups it is in.
    """

    devices: Any
    groups: int
    per_group: int
    rank: int
    group_rank: int

    @staticmethod
    def of(section: schema.Device, device: Device) -> Mesh:
        """The mesh for `device.sharding`: one group of all processes, or one on each node."""
        from torch.distributed.device_mesh import init_device_mesh

        world, kind = device.world, device.torch_device.type
        if section.sharding == "hybrid" and world.nodes > 1:
            per_group = world.size // world.nodes
            shape, names = (world.nodes, per_group), ("replicate", "shard")
            mesh = init_device_mesh(kind, shape, mesh_dim_names=names)
            return Mesh(mesh, world.nodes, per_group, world.rank % per_group, world.rank // per_group)
        return Mesh(init_device_mesh(kind, (world.size,), mesh_dim_names=("shard",)), 1, world.size, world.rank, 0)

    @property
    def group(self) -> Any:
        """The process group that has the model between it."""
        return self.devices["shard"].get_group()

    def rows(self, rows: int) -> tuple[int, int]:
        """The first of this process's rows of so many, and the one after the last."""
        return rows_of(rows, self.rank, self.per_group)

    def gathered(self, rows: Rows) -> list[torch.Tensor]:
        """The rows of all processes of a group in their order, on its first one; all of them call this."""
        each = rows_of(rows.shape[0], 0, self.per_group)[1]
        own = rows.tensor.detach()
        padded = own if len(own) == each else torch.cat([own, own.new_zeros((each - len(own), *own.shape[1:]))])
        parts = [torch.empty_like(padded) for _ in range(self.per_group)] if self.rank == 0 else None
        dist.gather(padded.contiguous(), parts, group_dst=0, group=self.group)
        shares = [rows_of(rows.shape[0], rank, self.per_group) for rank in range(self.per_group)]
        return [part[: stop - first] for part, (first, stop) in zip(parts or (), shares, strict=False)]

    def computes_as_whole(self) -> bool:
        """Whether this torch computes with norms of distributed tensors what it computes with those of whole ones.

        torch 2.10 adds a number to each process's part of a norm, and then adds the parts up.
        """
        from torch.distributed.tensor import DTensor, Shard

        ones = torch.ones(2, device=self.devices.device_type)
        norm: Any = DTensor.from_local(ones, self.devices["shard"], [Shard(0)], run_check=False).norm()
        return not any(place.is_partial() for made in (1 + norm, -2 * norm) for place in made.placements)

    def writes(self, number: int) -> bool:
        """Whether this process writes down its rows of a tensor with a number."""
        return number % self.groups == self.group_rank


@torch.no_grad()
def put_rows(parameter: Any, source: Any, mesh: Mesh) -> None:
    """Puts a tensor, or one in a file, into a sharded parameter: this process's rows of it."""
    parameter.to_local().copy_(take_rows(source, *mesh.rows(parameter.shape[0])))


def put_weights(module: nn.Module, weights: Mapping[str, Any], mesh: Mesh) -> None:
    """Puts tensors, or ones in files, into a sharded module by name."""
    places = dict(module.named_parameters(remove_duplicate=False))
    for name, source in weights.items():
        if name in places:
            put_rows(places[name], source, mesh)
    rest = {name: value for name, value in weights.items() if name not in places}
    module.load_state_dict(read_whole(rest), strict=False)


def take_apart(module: nn.Module) -> None:
    """Takes apart what a forward without gradients has left of a sharded module together."""
    if is_sharded(module):
        for part in module.modules():
            if is_sharded(part):
                part.reshard()  # type: ignore[operator]


class Sharding:
    """How the modules of a run are sharded.

    Args:
        section: The recipe's `device`.
        device: Where they go, in a world of several processes.
    """

    def __init__(self, section: schema.Device, device: Device, mesh: Mesh | None = None):
        self.section, self.device = section, device
        self.mesh = Mesh.of(section, device) if mesh is None else mesh
        self.described = ""
        self._units: list[Any] = []

    def shard(self, model: nn.Module) -> None:
        """Shards the model: its blocks one by one, the rest as one.

        Raises:
            UnfitError: It cannot be.
        """
        blocks = fitting_blocks(model, self.section)
        self.described = blocks.describe()
        taken: set[int] = set()
        for unit in (*blocks.modules.values(), model):
            for others in _of_other_types(unit, taken):
                self._fully(*others)
            self._fully(unit)
            taken |= {id(part) for part in unit.modules()}
        # the model is put together until backward, whatever becomes of what it gave; for blocks `check` refuses it
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")

    def shard_loss(self, module: nn.Module) -> None:
        """Shards a loss with parameters, as one."""
        if fault := unfit(module, Blocks({})):
            raise UnfitError(fault)
        self._fully(module)

    def _fully(self, *modules: nn.Module) -> None:
        """Makes one unit of modules."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        kinds = {parameter.dtype for module in modules for parameter in module.parameters()}
        reduce = torch.bfloat16 if self.section.reduce == "bf16" else torch.float32 if kinds & {*_HALF} else None
        policy = MixedPrecisionPolicy(reduce_dtype=reduce)
        together: Any = list(modules) if len(modules) > 1 else modules[0]
        fully_shard(together, mesh=self.mesh.devices, mp_policy=policy)
        if self.section.ddp.find_unused_parameters:  # a branch that one process takes alone
            modules[0].set_reduce_scatter_unused_params(True)  # type: ignore[operator]
        self._units.extend(modules)

    def reshard(self) -> None:
        """Takes apart what a forward without gradients has left together: its weights would be used once more."""
        for unit in self._units:
            take_apart(unit)

    def describe(self) -> str:
        """For the plan."""
        where = f"over {self.mesh.per_group} processes"
        if self.mesh.groups > 1:
            where = f"over the {self.mesh.per_group} processes of each node, copied on {self.mesh.groups} nodes"
        return f"sharded {where}: {self.described}"


# ---------------------------------------------------------------------- what cannot be


def fitting_blocks(model: nn.Module, section: schema.Device) -> Blocks:
    """The blocks that a model is sharded by.

    Raises:
        UnfitError: It cannot be sharded by them; the message says why, and the remedy.
    """
    try:
        blocks = blocks_of(model, section.shard)
    except ValueError as error:
        raise UnfitError(str(error), "device.shard") from error
    if fault := unfit(model, blocks):
        raise UnfitError(fault)
    return blocks


def unfit(model: nn.Module, blocks: Blocks) -> str | None:
    """Why a model cannot be sharded by these blocks, and what to do; None where it can be."""
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in named.items():
        if parameter.ndim == 0:
            return f"'{name}' has no dimension, and cannot be cut into rows; give it the shape [1]"
        if not parameter.numel():
            return f"'{name}' has no entries, of which there are no rows; make it a buffer, or leave it out"
        if not parameter.is_contiguous():
            return f"'{name}' is not contiguous (channels_last, or a transpose); make it so: .contiguous()"
    if sparse := [name for name, part in model.named_modules() if getattr(part, "sparse", False) is True]:
        return f"'{sparse[0]}' has sparse gradients, which cannot be sharded; say sparse=False"
    limited = [name for name, part in model.named_modules() if getattr(part, "max_norm", None) is not None]
    if limited:
        return f"'{limited[0]}' changes its weight in forward (max_norm), which would be lost; remove max_norm"
    return _tied_apart(model, named, blocks) or _of_several_types(model, blocks)


def _tied_apart(model: nn.Module, named: Mapping[str, nn.Parameter], blocks: Blocks) -> str | None:
    chosen = {id(module): name for name, module in blocks.modules.items()}
    # one module may stand at several places, as a block that is called again
    units = {name: chosen[id(part)] for name, part in model.named_modules(remove_duplicate=False) if id(part) in chosen}
    places: dict[int, str] = {}
    for name, parameter in named.items():
        first = places.setdefault(id(parameter), name)
        mine, others = (next((units[path] for path in _above(each) if path in units), "") for each in (name, first))
        if mine != others:
            return (
                f"'{first}' and '{name}' are one parameter, and '{mine or others}' would be sharded apart from the "
                "other; name blocks that do not part them in device.shard"
            )
    return None


def _above(name: str) -> Iterator[str]:
    """`a` and `a.b` of `a.b.weight`."""
    return (name[:place] for place, mark in enumerate(name) if mark == ".")


def _of_other_types(unit: nn.Module, taken: Container[int]) -> list[list[nn.Module]]:
    """The modules in a unit whose parameters are not of the type of most of it, as adapters are: a unit for each type.

    Args:
        unit: It.
        taken: Identities of modules that are in another.
    """
    found: dict[torch.dtype, list[nn.Module]] = {}
    sizes: Counter[torch.dtype] = Counter()
    for part in unit.modules():
        own = [] if id(part) in taken else list(part.parameters(recurse=False))
        if own:
            found.setdefault(own[0].dtype, []).append(part)
            sizes[own[0].dtype] += sum(parameter.numel() for parameter in own)
    return [found[dtype] for dtype, _ in sizes.most_common()[1:]]


def _of_several_types(model: nn.Module, blocks: Blocks) -> str | None:
    """What cannot be parted by type: parameters of one module, and a module that holds others of another type."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    taken: set[int] = set()
    for unit in (*blocks.modules.values(), model):
        alone = [list(part.parameters(recurse=False)) for part in unit.modules() if id(part) not in taken]
        apart = [list(part.parameters()) for others in _of_other_types(unit, taken) for part in others]
        for first, *others in filter(None, (*alone, *apart)):
            strange = next((one for one in others if one.dtype != first.dtype), None)
            if strange is not None:
                here, there = (str(one.dtype).removeprefix("torch.") for one in (strange, first))
                return (
                    f"'{names[id(strange)]}' is {here} and '{names[id(first)]}' {there}: what is sharded together has "
                    "one type; give them one, or name the module of one in device.shard"
                )
        taken |= {id(part) for part in unit.modules()}
    return None


# ---------------------------------------------------------------------- what a process holds


@dataclass(frozen=True)
class Shard:
    """A parameter as its module has it, and this process's rows of it, in the same memory.

    Attributes:
        whole: torch's distributed tensor.
        local: The rows, as an optimizer may step them.
    """

    whole: nn.Parameter
    local: nn.Parameter


class Shards:
    """The parameters of sharded modules, found while they are taken apart, and held from then on.

    Args:
        sharding: How they are sharded.
        modules: The model, and losses with parameters, by what stands before the names of their parameters.
    """

    def __init__(self, sharding: Sharding, modules: Mapping[str, nn.Module]):
        self.sharding, self.mesh, self.modules = sharding, sharding.mesh, dict(modules)
        self.named: dict[str, Shard] = {}
        self._by_identity: dict[int, Shard] = {}
        self.reshard()
        for prefix, module in self.modules.items():
            for name, parameter in module.named_parameters():
                self._add(prefix + name, parameter)
        self._trained = [shard for shard in self.named.values() if shard.whole.requires_grad]

    def _add(self, name: str, parameter: Any) -> None:
        if id(parameter) not in self._by_identity:
            local = nn.Parameter(parameter.detach().to_local(), requires_grad=parameter.requires_grad)
            shard = self.named[name] = Shard(parameter, local)
            self._by_identity[id(parameter)] = self._by_identity[id(local)] = shard

    def local(self, parameter: torch.Tensor) -> nn.Parameter:
        """This process's rows of a parameter."""
        return self._by_identity[id(parameter)].local

    def reshard(self) -> None:
        """Takes apart what a forward without gradients has left together."""
        self.sharding.reshard()

    @contextmanager
    def resharded(self) -> Iterator[None]:
        """Taken apart before and after."""
        self.reshard()
        with afterwards(self.reshard):
            yield

    @contextmanager
    def without_sync(self) -> Iterator[None]:
        """For all but the last micro-batch: gradients are summed within a group, and not yet over the groups."""
        if self.mesh.groups == 1:
            yield
            return
        for module in self.modules.values():
            module.set_requires_all_reduce(False)  # type: ignore[operator]
        try:
            yield
        finally:
            for module in self.modules.values():
                module.set_requires_all_reduce(True)  # type: ignore[operator]

    # ------------------------------------------------------------------ gradients

    @torch.no_grad()
    def collect(self) -> None:
        """Gives the rows their gradients, in the memory of the parameters' own."""
        for shard in self._trained:
            gradient: Any = shard.whole.grad
            shard.local.grad = None if gradient is None else gradient.to_local()

    def clear(self) -> None:
        """Forgets all gradients."""
        for shard in self._trained:
            shard.whole.grad = shard.local.grad = None

    @property
    def with_gradients(self) -> list[nn.Parameter]:
        """The rows that have one."""
        return [shard.local for shard in self._trained if shard.local.grad is not None]

    @property
    def gradients(self) -> list[torch.Tensor]:
        """Of the rows."""
        return [parameter.grad for parameter in self.with_gradients if parameter.grad is not None]

    # ------------------------------------------------------------------ rows of tensors

    def whole(self, parameter: torch.Tensor) -> Any:
        """The distributed tensor of a parameter, or of its rows; itself where it is another's."""
        shard = self._by_identity.get(id(parameter))
        return parameter if shard is None else shard.whole

    def rows(self, tensor: torch.Tensor, parameter: torch.Tensor) -> Rows:
        """What a process keeps beside the rows of a parameter, as rows."""
        shape = tuple(self.whole(parameter).shape)
        return Rows(tensor, shape, self.mesh.rows(shape[0])[0])

    def taken(self, source: Any, parameter: torch.Tensor) -> torch.Tensor:
        """This process's rows of what was kept beside a parameter, of a tensor or of one in a file."""
        return take_rows(source, *self.mesh.rows(self.whole(parameter).shape[0]))

    def gathered(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """The rows of all processes in their order, on rank 0; all processes call this."""
        return [] if self.mesh.group_rank else self.mesh.gathered(self.rows(self.local(parameter).detach(), parameter))

    def distributed(self, rows: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        """Rows as torch's distributed tensor, as the parameter is one."""
        from torch.distributed.tensor import DTensor

        whole = self.whole(parameter)
        return DTensor.from_local(
            rows, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
        )

    def module_state(self, module: nn.Module, base: Base | None = None) -> dict[str, Any]:
        """A sharded module's state_dict without its base, with rows in place of its parameters; tied ones have one."""
        self.reshard()
        self._check_memory()
        places = dict(module.named_parameters(remove_duplicate=False))
        made: dict[int, Rows] = {}

        def kept(name: str, value: Any) -> Any:
            if name not in places:
                return value
            parameter = places[name]
            if id(parameter) not in made:
                made[id(parameter)] = self.rows(self.local(parameter).detach(), parameter)
            return made[id(parameter)]

        return {name: kept(name, value) for name, value in own_state(module, base).items()}

    def _check_memory(self) -> None:
        """Refuses parameters that somebody has put into other memory: what is trained would not be what is computed.

        Raises:
            UsageError: There is one.
        """
        for name, shard in self.named.items():
            held: Any = shard.whole.detach()
            if held.to_local().data_ptr() != shard.local.data_ptr():
                raise UsageError(
                    f"model: '{name}' was put into other memory since the run began (by .to(), or a load_state_dict "
                    "that assigns): what is trained is not what is computed with; change parameters in place"
                )

    @torch.no_grad()
    def load_module(
        self, module: nn.Module, state: Mapping[str, Any], base: Base | None = None, *, casts: bool = False
    ) -> None:
        """Puts such a state, of tensors or of ones in files, into a module: of parameters this process's rows.

        Args:
            module: The model, or a loss.
            state: Its, without its base.
            base: What of it is not saved.
            casts: Whether numbers may be of other types than the module's, as a `load_state_dict` casts them.

        Raises:
            ValueError: It is of another module.
        """
        self.reshard()
        _check_same(own_state(module, base), state, casts)
        put_weights(module, state, self.mesh)


class ShardedPart:
    """A sharded module as a part of a checkpoint.

    Args:
        module: The model, or a loss.
        shards: What this process holds of it.
        base: What of it is not saved.
    """

    def __init__(self, module: nn.Module, shards: Shards, base: Base | None = None):
        self._module, self._shards, self._base = module, shards, base

    def state_dict(self) -> dict[str, Any]:
        """With rows in place of parameters."""
        return self._shards.module_state(self._module, self._base)

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Takes up this process's rows."""
        self._shards.load_module(self._module, state, self._base)


def sharded_parts(stateful: Mapping[str, Any], shards: Shards) -> dict[str, ShardedPart]:
    """Those that are sharded modules, as parts of a checkpoint."""
    return {key: ShardedPart(part, shards) for key, part in stateful.items() if is_sharded(part)}


def _check_same(own: Mapping[str, Any], state: Mapping[str, Any], casts: bool) -> None:
    """Refuses a state of other names, shapes or, unless they are cast, types.

    Raises:
        ValueError: It is.
    """
    for name in (*own, *state):
        if name not in own or name not in state:
            raise ValueError(f"'{name}' is only {'there' if name in state else 'here'}")
        here, there = own[name], state[name]
        if not isinstance(here, torch.Tensor):
            continue
        if shape_of(here) != shape_of(there):
            raise ValueError(f"'{name}' has the shape {list(here.shape)} here and {list(shape_of(there) or [])} there")
        if here.dtype != there.dtype and not casts:
            kinds = [str(kind).removeprefix("torch.") for kind in (here.dtype, there.dtype)]
            raise ValueError(f"'{name}' is {kinds[0]} here and {kinds[1]} there")


def names_of(shards: Shards | None) -> dict[int, str]:
    """The name of each parameter and of its rows, by their identity; none where nothing is sharded."""
    named = {} if shards is None else shards.named
    return {id(part): name for name, shard in named.items() for part in (shard.whole, shard.local)}


def as_local(shards: Shards | None, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The rows of parameters; themselves where nothing is sharded."""
    return list(parameters) if shards is None else [shards.local(parameter) for parameter in parameters]
