"""wandb, read back from the files and the requests that it really made."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import accelerate
import psutil
import pytest
from tiers import rounds
from tracked import API_KEY, CONFIG, end, log_steps, track, wandb_records
from worlds import TINY, in_world

from launcher.runs.tracking.tracker import Sent
from launcher.runs.tracking.tracking import read_metrics

# wandb does not wait for a helper that was killed
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@pytest.fixture(autouse=True, scope="module")
def _state() -> None:
    accelerate.PartialState(cpu=True)  # a run has its Accelerator before it tracks


# ---------------------------------------------------------------------- wandb


@pytest.fixture
def wandb_env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Sets wandb's environment, away from the person's own, and lets wandb forget the test before."""
    import wandb

    def set_env(**variables: str) -> None:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    wandb.teardown()
    set_env()
    yield set_env
    wandb.teardown()


def wandb_numbers(run_dir: Path) -> Counter[tuple[str, int, float]]:
    """How often wandb has each number: (name, step, value)."""
    found: Counter[tuple[str, int, float]] = Counter()
    for record in wandb_records(run_dir):
        if record.HasField("history"):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            assert row["step"] == row["_step"] == record.history.step.num
            found.update((name, row["step"], value) for name, value in row.items() if "/" in name)
    return found


def logged_numbers(run_dir: Path) -> Counter[tuple[str, int, float]]:
    """The same of metrics.jsonl."""
    return Counter(
        (f"{line['split']}/{name}", line["step"], value)
        for line in read_metrics(run_dir / "metrics.jsonl")
        for name, value in line.items()
        if name not in ("step", "split", "time", "seconds")
    )


def cores() -> list[Any]:
    """The helper processes of wandb that are ours."""
    return [child for child in psutil.Process().children() if child.name() == "wandb-core"]


def test_wandb_holds_every_number_though_its_helper_was_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wandb_env: Callable[..., None]
) -> None:
    wandb_env(WANDB_API_KEY=API_KEY, WANDB_MODE="offline")
    tracking = track(tmp_path, trackers={"wandb": {"project": "digits"}})
    log_steps(tracking, 10, 4000)  # more than the 32 KiB after which it writes; else it waits a quarter of a minute
    while not wandb_numbers(tmp_path):
        time.sleep(0.1)
    log_steps(tracking, 4010, 4100)
    cores()[0].kill()  # what a lost node does: wandb loses its last seconds
    end(tracking, "failed")
    assert 0 < len(wandb_numbers(tmp_path)) < len(logged_numbers(tmp_path))
    for start, last, outcome in ((4050, 4200, "stopped"), (4200, 4300, "finished")):
        tracking = track(tmp_path, start_step=start, trackers={"wandb": {"project": "digits"}})
        log_steps(tracking, start + 10, last)
        end(tracking, outcome)
    found = wandb_numbers(tmp_path)
    assert set(found) == set(logged_numbers(tmp_path))
    assert {step for (_, step, _), times in found.items() if times > 1} <= set(range(10, 4060, 10))  # before the kill
    assert max(found.values()) == 2
    runs = [record.run for record in wandb_records(tmp_path) if record.HasField("run")]
    assert {run.run_id for run in runs} == {(tmp_path / "wandb_id").read_text().strip()}
    assert {run.project for run in runs} == {"digits"}
    config = {u.key: json.loads(u.value_json) for record in wandb_records(tmp_path) for u in record.config.update}
    assert {key: config[key] for key in CONFIG} == CONFIG
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if API_KEY.encode() in path.read_bytes()] == []
    out = capsys.readouterr().out
    assert out.count(f"wandb: offline; to sync it later: wandb sync {tmp_path}/wandb/offline-run-*\n") == 3


def test_what_was_sent_counts_when_it_is_old_enough_or_the_run_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = Sent(tmp_path / "sent.json")
    sent.add(10, ["train/loss"])
    assert Sent(sent.path).settled == {}  # killed now: who knows
    monkeypatch.setattr("launcher.runs.tracking.tracker.SETTLED_SECONDS", 0.0)
    sent.add(20, ["train/loss"])
    sent.add(20, ["validation/loss"])
    assert Sent(sent.path).settled == {"train/loss": 20}  # all but the last is older than a moment
    sent.add(30, ["train/loss"])
    sent.settle()
    again = Sent(sent.path)
    assert again.settled == {"train/loss": 30, "validation/loss": 20}
    again.add(25, ["train/loss"])  # another start goes on from an earlier checkpoint
    again.settle()
    assert Sent(sent.path).settled == again.settled == {"train/loss": 30, "validation/loss": 20}


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_what_was_sent_is_sent_again_where_the_file_is_damaged(text: str, tmp_path: Path) -> None:
    (tmp_path / "sent.json").write_text(text)
    assert Sent(tmp_path / "sent.json").settled == {}


def train_with_wandb(folder: str) -> dict[str, Any]:
    """Trains as one rank, tracked by wandb; returns the resolved recipe."""
    from launcher.recipe.load import load_recipe
    from launcher.recipe.show import resolved
    from launcher.run import run
    from launcher.runs.options import Options
    from launcher.world.world import World

    os.environ.update(WANDB_API_KEY=API_KEY, WANDB_CONFIG_DIR=f"{folder}/config", WANDB_SILENT="true")
    recipe = load_recipe(str(TINY), ["track.wandb.mode=offline", "data.validation=20% of train", "launch.threads=1"])
    run(recipe, World(), Options(cpu=True, run_dir=folder, output="quiet"))
    return resolved(recipe)


def test_wandb_has_what_a_real_run_trained_with(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (recipe,) = in_world(1, train_with_wandb, str(folder))
    config = {u.key: json.loads(u.value_json) for record in wandb_records(folder) for u in record.config.update}
    assert {key: value for key, value in config.items() if key != "_wandb"} == json.loads(json.dumps(recipe))
    assert wandb_numbers(folder) == logged_numbers(folder)
    assert {name.partition("/")[0] for name, _, _ in wandb_numbers(folder)} == {"train", "validation"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if API_KEY.encode() in path.read_bytes()] == []


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server on this machine that accepts, and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def half_silent_server() -> Iterator[str]:
    """A server that answers whether it is there, and nothing else."""
    server = socket.create_server(("127.0.0.1", 0))
    kept = []

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            kept.append(connection)
            if connection.recv(4, socket.MSG_PEEK) == b"GET ":
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                connection.shutdown(socket.SHUT_WR)

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    for connection in kept:
        connection.close()


@rounds("server", plain=["no key", "closed port", "half silent"], long=["silent"])
def test_wandb_without_an_answer_is_offline(
    server: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wandb_env: Callable[..., None],
    silent_server: str,
    half_silent_server: str,
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
        urls = {"no key": closed, "closed port": closed, "silent": silent_server, "half silent": half_silent_server}
        key = {} if server == "no key" else {"WANDB_API_KEY": API_KEY}
        wandb_env(WANDB_BASE_URL=urls[server], **key)
        tracking = track(tmp_path, trackers={"wandb": {"settings": {"init_timeout": 2}}}, output="quiet")
        log_steps(tracking, 10, 100)
        end(tracking, "finished")
    why = {"no key": "no API key; wandb login", "half silent": "CommError: "}
    err = capsys.readouterr().err
    assert err.startswith(f"wandb: offline ({why.get(server, f'{urls[server]} does not answer')}")
    assert err.endswith(f"to sync it later: wandb sync {tmp_path}/wandb/offline-run-*\n")
    assert len(err.splitlines()) == 1
    assert wandb_numbers(tmp_path) == logged_numbers(tmp_path)


class WandbService(ThreadingHTTPServer):
    """As much of wandb's service as one run needs: keeps the rows of its history, or says nothing for a while."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), WandbRequest)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.rows: list[str] = []
        self.runs: set[str] = set()
        self.is_silent = False
        self.keeps_summary = False

    def answer(self, query: dict[str, Any]) -> Any:
        """The data for one GraphQL query."""
        entity = {"id": "e", "name": "somebody"}
        name = query["variables"].get("name", "")
        summary: dict[str, Any] = {}
        for row in self.rows if self.keeps_summary else ():
            summary |= json.loads(row)
        bucket = {"id": "b", "name": name, "historyLineCount": len(self.rows), "config": "{}"}
        bucket |= {"summaryMetrics": json.dumps(summary)}
        match query.get("operationName"):
            case "RunResumeStatus":
                tail = {"historyTail": json.dumps(self.rows[-1:]), "eventsTail": "[]", "wandbConfig": '{"t": {}}'}
                known = bucket | tail | {"eventsLineCount": 0, "logLineCount": 0} if name in self.runs else None
                return {"model": {"id": "p", "name": "digits", "entity": entity, "bucket": known}}
            case "UpsertBucket":
                self.runs.add(name)
                bucket["project"] = {"id": "p", "name": "digits", "entity": entity}
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            case "CreateRunFiles":
                files = [{"name": file, "uploadUrl": f"{self.url}/files"} for file in query["variables"]["files"]]
                return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}


class WandbRequest(BaseHTTPRequestHandler):
    """One request to it."""

    server: WandbService
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply({})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        while self.server.is_silent:
            time.sleep(0.1)
            self.close_connection = True
        if self.close_connection:
            return
        if self.path == "/graphql":
            self.reply({"data": self.server.answer(json.loads(body))})
            return
        if self.path.endswith("/file_stream"):
            self.server.rows += json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
        self.reply({})

    def reply(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def wandb_service() -> Iterator[WandbService]:
    with WandbService() as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield service
        service.is_silent = False
        service.shutdown()


def test_wandb_online_is_one_run_though_the_service_was_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wandb_env: Callable[..., None], wandb_service: WandbService
) -> None:
    soon = {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1"}  # and not every quarter of a minute
    wandb_env(WANDB_API_KEY=API_KEY, WANDB_BASE_URL=wandb_service.url, **soon)
    trackers = {"wandb": {"project": "digits", "settings": {"finish_timeout": 2}}}
    tracking = track(tmp_path, trackers=trackers)
    log_steps(tracking, 10, 100)
    while not wandb_service.rows:
        time.sleep(0.1)
    wandb_service.is_silent = True
    log_steps(tracking, 110, 200)
    end(tracking, "finished")
    out = capsys.readouterr().out
    assert f"wandb: {wandb_service.url}/somebody/digits/runs/" in out
    assert re.search(
        "wandb failed .TimeoutError: .*; training continues without it; to send what is missing: wandb sync", out
    )
    wandb_service.is_silent = False
    tracking = track(tmp_path, start_step=150, trackers=trackers)
    log_steps(tracking, 160, 300)
    end(tracking, "finished")
    rows = [json.loads(row) for row in wandb_service.rows]
    sent = Counter((name, row["step"], value) for row in rows for name, value in row.items() if "/" in name)
    assert sent == logged_numbers(tmp_path)
    assert wandb_service.runs == {(tmp_path / "wandb_id").read_text().strip()}


@pytest.mark.parametrize("keeps_summary", [True, False])
def test_wandb_online_goes_on_beside_what_the_user_s_code_logs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wandb_env: Callable[..., None],
    wandb_service: WandbService,
    keeps_summary: bool,
) -> None:
    import wandb

    wandb_service.keeps_summary = keeps_summary
    wandb_env(WANDB_API_KEY=API_KEY, WANDB_BASE_URL=wandb_service.url)
    own, run = tmp_path / "own", tmp_path / "run"
    own.mkdir()
    run.mkdir()
    (own / "speaks_of_itself.py").write_text("import wandb\n")
    monkeypatch.syspath_prepend(own)
    importlib.import_module("speaks_of_itself")
    mine = itertools.count()
    for first, last in ((10, 100), (110, 200), (210, 300)):
        tracking = track(run, start_step=first - 10, trackers={"wandb": {"project": "digits"}}, own_code=[own])
        while wandb.run is None or wandb.run.settings.mode == "disabled":
            time.sleep(0.05)
        for step in range(first, last + 1, 10):
            log_steps(tracking, step, step)
            for _ in range(3):
                wandb.log({"mine": next(mine)})
        end(tracking, "stopped" if last < 300 else "finished")
    rows = [json.loads(row) for row in wandb_service.rows]
    assert [row["mine"] for row in rows if "mine" in row] == list(range(90))
    sent = Counter((name, row["step"], value) for row in rows for name, value in row.items() if "/" in name)
    assert sent == logged_numbers(run)
    assert [row["_step"] for row in rows] == sorted({row["_step"] for row in rows})  # none twice


STOPPED = """
    import os, signal, sys, time
    from pathlib import Path
    import accelerate, psutil
    from launcher.runs.tracking import trackers
    from launcher.runs.tracking.tracking import open_tracking

    trackers.LEAVE_SECONDS = 3.0
    accelerate.PartialState(cpu=True)
    tracking = open_tracking(
        run_dir=Path(sys.argv[1]), total_steps=300, start_step=0, trackers={"wandb": {"mode": "offline"}},
        run_name="digits", config={}, best=None,
    )
    while not list(Path(sys.argv[1]).glob("wandb/offline-run-*/run-*.wandb")):
        time.sleep(0.05)
    helper = next(child for child in psutil.Process().children() if child.name() == "wandb-core")
    helper.send_signal(signal.SIGSTOP)
    for step in range(1, 301):
        tracking.log({"step": step, "epoch": 1.0, "split": "train", "loss": 1 / step})
    tracking.close("stopped", [], 300)
    print(helper.pid)
"""


def test_a_wandb_that_hangs_does_not_keep_the_process_from_ending(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(STOPPED), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    *_, last, resume, helper = done.stdout.splitlines()
    assert "wandb did not finish in time and was abandoned" in done.stdout
    assert last.startswith("stopped, saved after step 300")
    assert resume.startswith("resume    launcher resume ")
    assert not psutil.pid_exists(int(helper))
    assert "Traceback" not in done.stderr
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 300
