"""Assembles the command and turns errors into messages and exit codes."""

from __future__ import annotations

import sys

import click
import typer

from fleet.cli import agents, data, demo, doctor, fleet_commands, live, nodes, report, state, tasks
from fleet.cli.output import complain
from fleet.errors import FleetError, exit_code

INTERRUPTED = 130

app = typer.Typer(
    name="fleet",
    help="Many Claude Code agents as one durable worker cluster on Ray.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(state.options)
for module in (fleet_commands, demo, doctor, agents, tasks, data, nodes, report, live):
    module.register(app)


def main() -> None:
    """Run the command; exit with a code of the table in `fleet.errors`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command with these arguments and return its exit code."""
    try:
        code = app(args=arguments, prog_name="fleet", standalone_mode=False)
    except FleetError as error:
        complain(error)
        return exit_code(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # `fleet tasks | head`: the reader has what it wanted.
        sys.stderr.close()
        return 0
    except Exception as error:
        return _of_click(error)
    return code if isinstance(code, int) else 0


def _of_click(error: Exception) -> int:
    """Return the exit code of an error of the command line itself; raise any other."""
    # Typer brings a click of its own, whose classes are not those of the package click.
    name = type(error).__name__
    if name == "Abort" or isinstance(error, click.exceptions.Abort):
        return INTERRUPTED
    show = getattr(error, "show", None)
    if callable(show):
        show()
        return int(getattr(error, "exit_code", 2))
    raise error
