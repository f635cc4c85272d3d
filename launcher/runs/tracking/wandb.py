"""Weights & Biases."""

from __future__ import annotations

import shlex
import ssl
import threading
import time
import urllib.request
import uuid
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException
from typing import Any

from launcher.errors import EXIT_FAILED
from launcher.runs.tracking.own_code import silence, speaks_to
from launcher.runs.tracking.tracker import EXIT_CODES, Sent, Tracker, in_short, numbers, plain_config
from launcher.world.files import write_text

# What is not sent to an entity that the recipe names, who may be anybody: the diff of the working tree, the script, and
# what machine and user this is. Where WANDB_ENTITY says who gets the run, all of it is sent.
_OF_THE_MACHINE = ("disable_git", "disable_code", "x_disable_meta", "x_disable_machine_info")


class WandB(Tracker):
    """One wandb run across resumes: its id lies in the run's folder, its step is ours.

    Without a key or a network it is kept offline. On a resume wandb is given what it lacks: a killed start loses its
    last seconds, which offline are given again, as nobody can tell which of them arrived.
    """

    _step: int  # wandb's own count
    _resumed_at: int  # the newest step that the server has
    _newest: Mapping[str, int]  # the newest step that it surely has, of each number
    _sent: Sent
    _is_shared = False  # whether the user's code logs to the same run

    def start(self) -> None:
        """Opens the run, online where that is asked for and possible, and brings it up to date."""
        defaults = _settings()
        self._is_shared = speaks_to("wandb", self.run.own_code)
        mode = self.settings.pop("mode", None) or defaults.mode
        why = ""
        if mode != "online":
            self._open_run(mode)
        elif why := self._obstacle(defaults) or self._try_online():
            self._open_run("offline")
        self._announce(why)
        self._catch_up()

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Sends those numbers that wandb does not have yet."""
        news = {key: value for key, value in values.items() if step > self._newest.get(key, self._resumed_at)}
        if news:
            self._step = max(self._step, step)  # wandb's own count cannot go back
            # where the user's code logs as well it counts too, at any moment: what comes late would be dropped
            self.inner.log({"step": step, **news}, step=None if self._is_shared else self._step)
            self._sent.add(step, news)

    def finish(self, outcome: str) -> None:
        """Ends the wandb run with the state that the launcher's has."""
        if outcome == "stopped":
            self.inner.run.mark_preempting()
        self.inner.run.finish(exit_code=EXIT_CODES.get(outcome, EXIT_FAILED))
        self._sent.settle()

    def abandon(self) -> None:
        """Ends wandb's helper process, for which wandb would wait when Python ends: asks first, then kills."""
        import psutil

        helpers = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
        ending = threading.Thread(target=_end_wandb, daemon=True)
        ending.start()
        ending.join(2.0)
        for helper in helpers:
            with suppress(psutil.NoSuchProcess):
                helper.kill()
        ending.join(5.0)
        if self._is_shared:
            silence()

    def _open_run(self, mode: str) -> None:
        _settings()
        options = dict(self.settings)
        asked = options.pop("settings", {})
        ours = {
            "silent": True,
            "console": "off",
            "init_timeout": 15,
            "finish_timeout": 15,
            "finish_timeout_raises": True,
        }
        resume = {"resume": "allow"} if mode == "online" else {}
        named = {"dir": str(self.run.run_dir), "id": self._run_id(), "name": self.run.label, "mode": mode}
        private = dict.fromkeys(_OF_THE_MACHINE, True) if options.get("entity") else {}
        self.open(**{**named, **resume, **options, "settings": {**ours, **asked, **private}})
        self.inner.store_init_configuration(plain_config(self.run.config))
        self.inner.run.define_metric("step")
        self.inner.run.define_metric("*", step_metric="step")

    def _run_id(self) -> str:
        path = self.run.run_dir / "wandb_id"
        run_id = path.read_text(encoding="utf-8").strip() if path.exists() else ""
        if not run_id:
            run_id = uuid.uuid4().hex[:8]
            write_text(path, run_id + "\n")
        return run_id

    def _obstacle(self, defaults: Any) -> str:
        """Why the run cannot be online; empty if nothing is known to be in the way."""
        if not _has_key(defaults):
            return "no API key; wandb login"
        parts = self.run.run_dir.glob("wandb/offline-run-*")
        if any(not list(part.glob("*.synced")) for part in parts):
            return "an earlier part of it is not synced yet"
        return _unreachable(defaults.base_url)

    def _try_online(self) -> str:
        """Why the run could not be opened online; empty if it is."""
        try:
            self._open_run("online")
        except Exception as error:  # what a server answers is not ours to foresee
            self.abandon()  # or its helper would hold the run's id
            return in_short(error)
        return ""

    def _announce(self, why: str) -> None:
        run = self.inner.run
        if run.offline:
            folder = shlex.quote(str(self.run.run_dir / "wandb"))
            self.hint = f"; to sync it later: wandb sync {folder}/offline-run-*"
            if why:
                self.warn(f"wandb: offline ({why}){self.hint}")
            else:
                self.say(f"wandb: offline{self.hint}")
        elif run.url:
            self.hint = f"; to send what is missing: wandb sync {shlex.quote(str(run.settings.sync_dir))}"
            self.say(f"wandb: {run.url}")

    def _catch_up(self) -> None:
        run = self.inner.run
        self._step = -1
        self._sent = Sent(self.run.run_dir / "wandb_sent.json")
        self._resumed_at = self._newest_there() if run.resumed else -1
        self._newest = dict(self._sent.settled) if run.offline else {}
        if self.run.start_step > 0:
            for line in self.run.history():
                self.log(line["step"], numbers(line))
                time.sleep(0)  # the training's thread goes first

    def _newest_there(self) -> int:
        """The newest step of ours that the server has.

        Its own count is another where the user's code logs as well. A server without a summary does not say it then:
        it has what was sent a while before that start ended.
        """
        if not self._is_shared:
            return int(self.inner.run.starting_step) - 1
        newest = self.inner.run.summary.get("step")
        return int(newest) if isinstance(newest, int | float) else max(self._sent.settled.values(), default=-1)


def _settings() -> Any:
    """What wandb knows by itself: WANDB_MODE, WANDB_BASE_URL, the key. From here on it prints nothing."""
    import wandb

    return wandb.setup(wandb.Settings(silent=True)).settings


def _end_wandb() -> None:
    import wandb

    with suppress(Exception, SystemExit):
        wandb.teardown()


def _has_key(defaults: Any) -> bool:
    from requests.utils import get_netrc_auth  # wandb's own way

    return bool(defaults.api_key or defaults.identity_token_file or get_netrc_auth(defaults.base_url))


def _unreachable(url: str, timeout_seconds: float = 5.0) -> str:
    """Why nobody answers there; empty if anybody does, whatever the answer."""
    try:
        urllib.request.urlopen(url, timeout=timeout_seconds).close()
    except (urllib.error.HTTPError, HTTPException):
        return ""
    except OSError as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLError):
            return ""
        return f"{url} does not answer"
    return ""
