"""The `fleet` command, over the client and, for `up` and `down`, the cluster."""


def main() -> None:
    """Run the `fleet` command and exit with a code of the table in `fleet.errors`."""
    from fleet.cli.command import main as run

    run()
