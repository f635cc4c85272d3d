"""`python -m launcher`, the command `launcher`, and what accelerate and torchrun start."""

from launcher.world.exit import ended_by


def start() -> None:
    """Runs the command line as a process of its own."""

    def program() -> int:
        from launcher.cli.main import main

        return main()

    ended_by(program)


if __name__ == "__main__":
    start()
