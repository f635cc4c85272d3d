"""`launcher doctor`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launcher.cli.arguments import add_processes
from launcher.errors import EXIT_DONE, EXIT_FAILED

if TYPE_CHECKING:
    from launcher.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Says the command's flags."""
    doctor = commands.add_parser(
        "doctor",
        help="look at the machine before you train on it",
        description="Versions, GPUs, CPUs, disk, limits, and an all-reduce over the processes: each line is ok, "
        "warning or broken, with what to do. Exit code 1 where something is broken.",
    )
    add_processes(
        doctor,
        processes="default: every GPU, or two",
        cpu="let the processes talk on the CPU even if there are GPUs",
    )
    doctor.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace, _: Sequence[str]) -> int:
    from launcher.checks.doctor import BROKEN, Finding, communication, findings
    from launcher.device.kind import found
    from launcher.launch.nodes import Nodes
    from launcher.launch.supervisor import choose_processes

    def show(finding: Finding) -> bool:
        print(f"{finding.level:<8} {finding.what:<14} {finding.text}", flush=True)
        return finding.level == BROKEN

    nodes = Nodes.parse(options.nodes or 1, options.node_rank, options.master)
    cpu = options.cpu or found() is None
    asked = options.processes or (2 * nodes.count if cpu else None)
    processes = choose_processes(asked, cpu, nodes.count)
    broken = [show(finding) for finding in findings()]
    if processes * nodes.count > 1:
        broken.append(show(communication(processes, cpu, nodes)))
    return EXIT_FAILED if any(broken) else EXIT_DONE
