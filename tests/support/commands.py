"""Command lines of deploy/, read by the commands themselves without running them."""

from collections.abc import Sequence
from typing import Any

import click

from trainer.cli import cli as trainer
from worker.cli import main as moderation

PROGRAMS: dict[str, click.Group] = {"moderation": moderation, "moderation-trainer": trainer}


def parsed(program: str, words: Sequence[str]) -> dict[str, Any]:
    """The values of the last subcommand's parameters; fails where the command would refuse the words as wrong usage."""
    command: click.Command = PROGRAMS[program]
    context = click.Context(command, info_name=program)
    rest = list(words)
    while isinstance(command, click.Group):
        found = command.get_command(context, rest[0]) if rest else None
        assert found is not None, f"{program} has no subcommand {rest[:1]}"
        command, context = found, click.Context(found, info_name=rest.pop(0), parent=context)
    try:
        return command.make_context(context.info_name, rest, parent=context.parent).params
    except click.UsageError as error:
        raise AssertionError(f"{program} {' '.join(words)}: {error.format_message()}") from None
