"""What a recipe may tell sbatch: its options, and how it writes a time."""

from __future__ import annotations

SLURM_TIME = r"^(\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2})$"


# The long options of sbatch that a recipe may state beside the keys below, by their full names: what a job asks for.
# None runs a command, names a file, is about one submission (hold, begin, dependency), or is the launcher's to say.
_OPTIONS = """
    acctg_freq batch cluster_constraint comment constraint contiguous core_spec cores_per_socket cpu_freq
    cpus_per_gpu delay_boot distribution exclude exclusive extra_node_info gpu_bind gpu_freq gres gres_flags
    hint licenses mail_type mail_user mcs_label mem_bind mem_per_cpu mem_per_gpu mincpus network nice no_kill
    nodelist ntasks_per_core ntasks_per_socket oom_kill_step overcommit oversubscribe power prefer priority
    profile propagate qos reservation segment sockets_per_node spread_job switches thread_spec threads_per_core
    time_min tmp tres_bind tres_per_task use_min_nodes wckey
"""
SBATCH_OPTIONS = frozenset(_OPTIONS.split())


def limit_seconds(text: str) -> int | None:
    """A time limit as sbatch reads it (`90`, `1:30:00`, `1-12`), which it rounds up to minutes; None for no limit."""
    days, is_long, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if is_long:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, minutes, seconds = 0, *[*parts, 0][:2]
    total = (int(days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds
    return -(-total // 60) * 60 or None
