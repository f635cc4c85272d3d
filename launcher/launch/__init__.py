"""Starting processes: on this machine, on several, through SLURM."""
