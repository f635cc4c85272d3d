"""The commands, a module each: `add(commands)` says its flags, and imports nothing that `--help` can do without."""
