"""One writer a run: a lock that says who holds it, outlives nobody, and works on shared file systems."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.errors import EXIT_FAILED, UsageError
from launcher.recipe.caller import option
from launcher.world import slurm
from launcher.world.world import job_start

LOCK_FILE = "lock.json"
QUEUE_FILE = "slurm.json"  # which starts of the run's jobs there were, and which are over
BEAT_SECONDS = 15.0  # how often a holder shows that it is alive
STALE_SECONDS = 60.0  # a holder on another host that has not shown so for so long is gone


@contextmanager
def locked(folder: Path, job: str | None = None, name: str = LOCK_FILE) -> Iterator[str | None]:
    """Holds a run's folder.

    On this host a holder is alive when its process is; on another, when its lock has been touched lately, unless it is
    an earlier start of a job of which SLURM or its batch script has said that it is over.

    Args:
        folder: The run's.
        job: The SLURM job that this process belongs to: a start of it that follows another has nobody beside it.
        name: The lock's file, where it is not the run itself that is held.

    Yields:
        In words what became of an earlier holder that has died; None where there was none.

    Raises:
        UsageError: A living process holds it, or the folder cannot be written.
    """
    path = folder / name
    me = _me(job)
    try:
        note = _acquire(path, me)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror or error}") from error
    released = threading.Event()
    threading.Thread(target=_beat, args=(path, me, released), daemon=True, name="lock").start()
    try:
        yield note
    finally:
        released.set()
        with contextlib.suppress(OSError):
            path.unlink()


def holder(folder: Path, name: str = LOCK_FILE) -> Mapping[str, Any] | None:
    """Who holds a run's folder and is alive, as far as can be told from here; None where nobody does."""
    path = folder / name
    owner = _read(path)
    if owner is None or _is_over(path, owner, _me(None)):
        return None
    return owner if _is_alive(path, owner) else None


def check_free(folder: Path, job: str | None = None) -> None:
    """Looks whether a run's folder may be written, before anything in it is touched.

    Raises:
        UsageError: A living process holds it.
    """
    path = folder / LOCK_FILE
    if (owner := _read(path)) is not None:
        _refuse_living(path, owner, _me(job))


def _refuse_living(path: Path, owner: Mapping[str, Any], me: Mapping[str, Any]) -> None:
    if not _is_over(path, owner, me) and _is_alive(path, owner):
        raise UsageError(
            f"{path.parent} is being written by {_who(owner)}; wait for it or stop it (it saves before it ends), or "
            f"name another {option('run_dir')}"
        )


def _is_over(path: Path, owner: Mapping[str, Any], me: Mapping[str, Any]) -> bool:
    """Whether the holder is known to be gone, though it has touched its lock lately: its job says so."""
    job, restart = owner.get("job"), owner.get("restart")
    if job is None or owner.get("namespace") == me["namespace"]:  # from here its process can be seen
        return False
    if job != me["job"]:
        return f"{job}.{restart or 0}" in over_starts(_read(path.with_name(QUEUE_FILE)) or {})
    return bool(restart < me["restart"] if isinstance(restart, int) else owner.get("host") != me["host"])


def over_starts(submission: Mapping[str, Any]) -> set[str]:
    """The starts of a run's jobs that are over, as in `1234.0`: what `slurm.json` says of them."""
    starts, earlier = submission.get("starts"), submission.get("over")
    over = {str(start_id) for start_id in earlier} if isinstance(earlier, list) else set()
    for start in starts if isinstance(starts, list) else ():
        if isinstance(start, dict) and ("code" in start or "lost" in start):
            over.add(f"{start.get('job')}.{start.get('restart', 0)}")
    return over


def _acquire(path: Path, me: Mapping[str, Any]) -> str | None:
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    note = None
    try:
        hidden.write_text(json.dumps(me) + "\n", encoding="utf-8")
        while True:
            try:
                _place(hidden, path)
                return note
            except FileExistsError:
                note = _take_over(path, me)
    finally:
        hidden.unlink(missing_ok=True)


def _place(hidden: Path, path: Path) -> None:
    """Puts a file where none is.

    Raises:
        FileExistsError: There is one.
    """
    try:
        os.link(hidden, path)  # atomic on every file system that has links, NFS included
    except FileExistsError:
        raise
    except OSError:
        _copy(hidden, path)


def _copy(source: Path, path: Path) -> None:
    """Where there are no links: whole, or, on a full disk, not at all.

    Raises:
        FileExistsError: There is one.
    """
    with path.open("x", encoding="utf-8") as file:
        try:
            file.write(source.read_text(encoding="utf-8"))
            file.flush()
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _take_over(path: Path, me: Mapping[str, Any]) -> str | None:
    """Moves a dead holder's lock out of the way.

    Raises:
        UsageError: The holder is alive.
    """
    owner = _read(path)
    if owner is None:
        time.sleep(0.1)  # just released, or just being taken
        return None
    _refuse_living(path, owner, me)
    aside = path.with_name(f".{path.name}.stale.{os.getpid()}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:  # another process was quicker: the next round finds its lock
        return None
    taken = _read(aside)
    if taken != owner:  # it was quicker, and this is its lock
        with contextlib.suppress(OSError):
            _place(aside, path)
    aside.unlink()
    if taken != owner:
        return None
    return f"{_who(owner)}, died without releasing the run; taking it over"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {"pid": "unknown", "host": "unknown"}
    return content if isinstance(content, dict) else {"pid": "unknown", "host": "unknown"}


def _me(job: str | None) -> dict[str, Any]:
    return {
        "job": job,
        "restart": job_start(),
        "host": platform.node(),
        "pid": os.getpid(),
        "start": _started(os.getpid()),
        "namespace": _namespace(),
        "since": time.time(),
    }


def _who(owner: Mapping[str, Any]) -> str:
    return f"process {owner.get('pid')} on {owner.get('host')}, since {_when(owner)}"


def _when(owner: Mapping[str, Any]) -> str:
    since = owner.get("since")
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since)) if isinstance(since, int | float) else "long ago"


def _namespace() -> str:
    """What process numbers mean: of this boot, in this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _started(pid: int) -> str:
    """When a process began, so that a number used again is told apart; empty where that cannot be known."""
    try:
        state, *fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        return "" if state == "Z" else fields[18]
    except (OSError, IndexError, ValueError):
        return ""


def _is_alive(path: Path, owner: Mapping[str, Any]) -> bool:
    pid = owner.get("pid")
    if owner.get("namespace") == _namespace() and isinstance(pid, int):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return _started(pid) == owner.get("start")
    return _seconds_since_touched(path) < STALE_SECONDS


def _seconds_since_touched(path: Path) -> float:
    """By the file server's clock, which alone knows when another host touched the lock."""
    probe = path.with_name(f".{path.name}.probe.{os.getpid()}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except OSError:
        return 0.0  # nothing is known: nobody is declared dead
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _beat(path: Path, me: Mapping[str, Any], released: threading.Event) -> None:
    while not released.wait(BEAT_SECONDS):
        if (other := _read(path)) is not None and "namespace" in other and other != me:
            # its job was started again elsewhere while this node could not be reached: two must not write
            print(
                f"{path.parent} is written by a later start on {other.get('host')}: leaving",
                file=sys.stderr,
                flush=True,
            )
            if me["job"] is not None and other.get("job") == me["job"]:
                slurm.freeze_this_start()
            os._exit(EXIT_FAILED)
        with contextlib.suppress(OSError):
            os.utime(path)
