"""Shards that lie elsewhere: listed once, fetched when they are read, and kept for as long as there is room.

What was listed is what is read. On the Hub that is a commit: it stays what it is, whoever writes to the branch. What
comes is compared with what was listed, by its hash where the server tells one. A server that fails is asked again for a
while, and then one line says so.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from launcher.datasets.files import atomic_write, needed
from launcher.errors import LauncherError
from launcher.recipe.masking import masked
from launcher.text import words_of
from launcher.world.signals import pause

T = TypeVar("T")

WAITS_SECONDS = (1.0, 3.0, 9.0, 27.0)  # before a server that failed is asked again
_OURS = re.compile(r"[0-9a-f]{24}\.(tar|jsonl|parquet)")  # what may be removed again
_COMMIT = re.compile(r"@[0-9a-f]{40}/")


class Listed(NamedTuple):
    """A file elsewhere, as its server has listed it.

    Attributes:
        name: What it is called in messages.
        address: Where it stays what it is: on the Hub, with the commit.
        size: In bytes, where the server tells.
        stamps: What else it is known again by.
        proof: The hash of its content, as `sha256:…` or `git:…`; empty where the server tells none.
    """

    name: str
    address: str
    size: int | None
    stamps: tuple[str, ...]
    proof: str = ""

    @property
    def facts(self) -> tuple[Any, ...]:
        """What it is known again by."""
        return self.name, self.size, *self.stamps


def listed(name: str, names: Sequence[str], folder: Path) -> tuple[list[Listed], str]:
    """The files of an address or a pattern, and what is to be said of the list.

    It is kept: where the server does not answer, what was listed last is what there is.

    Args:
        name: As in `hf://datasets/OWNER/NAME/*-{0..3}.tar`.
        names: The same without braces.
        folder: Where it is kept.

    Raises:
        FileNotFoundError: There is no such file, or it is not for this user.
        LauncherError: The server does not answer, and was never asked for this.
    """
    kept = folder / f"list-{_digest(name)}.json"
    try:
        found = _insisted(lambda: list(_asked(names)), name)
    except LauncherError as error:
        with suppress(OSError, ValueError, TypeError):
            known = json.loads(kept.read_text(encoding="utf-8"))
            return [
                Listed(**{**one, "stamps": tuple(one["stamps"])}) for one in known
            ], f"{error}; read as it was listed before"
        raise
    with atomic_write(kept) as part:
        part.write_text(json.dumps([one._asdict() for one in found]), encoding="utf-8")
    return found, ""


def fetched(shard: Listed, suffix: str, folder: Path, most: int) -> Path:
    """A shard on this machine: one process of it fetches, the others wait for it.

    Args:
        shard: Which.
        suffix: What its file's name ends in.
        folder: Where it is kept.
        most: How many bytes may be kept there; those that were not read for longest make room.

    Raises:
        LauncherError: It is gone, it is another now, or its server does not answer.
    """
    digest = _digest(shard.facts)
    file = folder / f"{digest}.{suffix}"
    with _locked(folder / f"{digest}.lock"):
        if not file.exists():
            _make_room(folder, most, shard.size or 0)
            try:
                _insisted(lambda: _fetch(shard, file), shard.name)
            except FileNotFoundError as error:
                raise LauncherError(f"{shard.name} was listed and is gone; restore it, or start a new run") from error
        with suppress(FileNotFoundError):
            os.utime(file)
    return file


# ---------------------------------------------------------------------- asking a server


def _asked(names: Sequence[str]) -> Iterator[Listed]:
    protocol = names[0].partition("://")[0]
    system = _filesystem(names[0])
    for name, address in zip(names, _with_commits(system, names) if protocol == "hf" else names, strict=True):
        for path in sorted(map(str, system.glob(address))) if glob.has_magic(name) else [address]:
            facts = system.info(path)
            full = path if "://" in path else f"{protocol}://{path}"
            called = _COMMIT.sub("/", full) if address != name else full
            yield Listed(_told(called), full, facts.get("size"), _stamps(facts), _proof(facts))


def _with_commits(system: Any, names: Sequence[str]) -> Iterator[str]:
    """Addresses of the Hub with the commit that their branch is at, the same for all of a repository."""
    hub = needed("huggingface_hub", "hub", "Shards").HfApi(endpoint=system.endpoint, token=system.token)
    commits: dict[tuple[str, ...], str] = {}
    for name in names:
        place = system.resolve_path(name)
        if not hasattr(place, "repo_id"):  # a bucket, which has no commits
            yield name
            continue
        branch = place.repo_type, place.repo_id, place.revision
        if branch not in commits:
            commits[branch] = hub.repo_info(place.repo_id, repo_type=place.repo_type, revision=place.revision).sha
        kind = {"dataset": "datasets/", "space": "spaces/"}.get(place.repo_type, "")
        yield f"hf://{kind}{place.repo_id}@{commits[branch]}/{place.path_in_repo}"


def _stamps(facts: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(facts[key]) for key in ("ETag", "etag", "blob_id", "mtime", "last_commit") if facts.get(key))


def _proof(facts: dict[str, Any]) -> str:
    """The hash that the Hub tells of a file: of its content where that lies outside of git, else git's own."""
    lfs = facts.get("lfs")
    if lfs:
        return f"sha256:{lfs['sha256']}"
    return f"git:{facts['blob_id']}" if facts.get("blob_id") else ""


def _fetch(shard: Listed, file: Path) -> None:
    """Brings it, and proves that it is what was listed."""
    system = _filesystem(shard.address)
    quiet = needed("fsspec.callbacks", "hub", "Shards").TqdmCallback(tqdm_kwargs={"disable": True})
    with atomic_write(file) as part:
        system.get_file(shard.address, str(part), callback=quiet)
        size = part.stat().st_size
        if shard.size is not None and size != shard.size:
            raise _OtherError(f"it has {size:,} bytes, and was listed with {shard.size:,}")
        if shard.proof and _hash(part, shard.proof.partition(":")[0]) != shard.proof:
            raise _OtherError("its content is not what was listed")
        if not shard.proof:
            system.invalidate_cache()
            if _stamps(system.info(shard.address)) != shard.stamps:
                raise _OtherError("it was changed since it was listed")


class _OtherError(Exception):
    """What came is another file than the one that was listed."""


def _hash(file: Path, kind: str) -> str:
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    if kind == "git":
        digest.update(f"blob {file.stat().st_size}\0".encode())
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return f"{kind}:{digest.hexdigest()}"


def _filesystem(name: str) -> Any:
    return needed("fsspec", "hub", "Shards").filesystem(name.partition("://")[0])


# ---------------------------------------------------------------------- a server that fails


def _insisted(act: Callable[[], T], name: str) -> T:
    """What it gives, where it fails also at a later try.

    Raises:
        FileNotFoundError: There is no such file.
        LauncherError: It failed to the last.
    """
    for wait in (*WAITS_SECONDS, None):
        try:
            return act()
        except ImportError:
            raise
        except Exception as raised:
            error = _meant(raised)
            status = _status(error)
            if isinstance(error, FileNotFoundError) or status in (401, 403, 404, 410):
                remedy = "check the address; what is not public needs your key (of the Hub: hf auth login, or HF_TOKEN)"
                raise FileNotFoundError(f"no file at {_told(name)}, or none for you; {remedy}") from error
            words = f"{_told(name)} cannot be fetched: {type(error).__name__.strip('_')}: {_told(words_of(error))}"
            if wait is None or _is_final(error, status):
                raise LauncherError(f"{words}; start the run again when its server answers") from error
            print(f"{words}; trying again in {wait:g} s", file=sys.stderr, flush=True)
            pause(wait)  # who is asked to stop tries what is left at once
    raise AssertionError


def _meant(error: Exception) -> Exception:
    """What is behind fsspec's word for whatever happens at an address that is asked about: that there is no file."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def _status(error: Exception) -> int | None:
    """The number that a server has answered with."""
    found = getattr(getattr(error, "response", None), "status_code", getattr(error, "status", None))
    return found if isinstance(found, int) else None


def _is_final(error: Exception, status: int | None) -> bool:
    """Whether asking again would change nothing."""
    if status is not None:
        return 400 <= status < 500 and status not in (408, 429)
    is_offline = type(error).__name__ == "OfflineModeIsEnabled"  # the Hub's, which may not be installed
    return is_offline or isinstance(error, ValueError | TypeError | NotImplementedError | PermissionError)


def _told(text: str) -> str:
    """Words of others in one line, without what is secret."""
    return masked(" ".join(text.split()))[:400]


# ---------------------------------------------------------------------- what is kept


def _digest(facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


def _make_room(folder: Path, most: int, size: int) -> None:
    """Removes what was not read for longest; whoever has it open reads on."""
    files = sorted((file for file in folder.iterdir() if _OURS.fullmatch(file.name)), key=_last_read)
    sizes = {file: file.stat().st_size for file in files if file.exists()}
    total = size + sum(sizes.values())
    for file in files:
        if total <= most:
            return
        total -= sizes.get(file, 0)
        file.unlink(missing_ok=True)


def _last_read(file: Path) -> float:
    with suppress(FileNotFoundError):
        return file.stat().st_mtime
    return 0.0


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
