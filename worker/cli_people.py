"""The commands of the people who decide: corrections, the circuit breaker, dead letters.

Words in, words out, as in `cli`, which gathers them; everything else is in the rooms they call.
"""

from datetime import UTC, datetime

import click

from worker import breaker, deadletter, settings
from worker.client import Moderation


class TakesIds(click.Command):
    """Tells whoever gives a content ID that looks like an option how to give it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's own, but for that sentence."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.possibilities:
                raise
            said = error.format_message()
            raise click.UsageError(f"{said} A content ID that begins with - is given after --.", ctx) from None


@click.command(cls=TakesIds)
@click.argument("content_id")
@click.argument("label")
@click.option("--by", required=True, metavar="NAME", help="Who decided.")
def correct(content_id: str, label: str, by: str) -> None:
    """Decide on a content ID: approved, not_suitable or risked (a ban). Stands against every model."""
    client = Moderation()
    judged = client.verdict(content_id) is not None
    entry = client.correct(content_id, label, by=by)
    if not judged:  # as with a mistyped one, whose decision changes nothing for the picture that was meant
        click.echo(f"warning: {content_id} had no verdict (yet, or any more): is it the ID that you meant?", err=True)
    click.echo(f"{content_id} is {label}, says {by} ({entry}); a worker puts it into force", err=True)


@click.group("breaker")
def circuit_breaker() -> None:
    """The ban circuit breaker: bans above the quota wait for a person."""


@circuit_breaker.command("status")
@click.option("--ids", is_flag=True, help="Print the content IDs whose bans are withheld, a line each.")
def breaker_status(ids: bool) -> None:
    """Say whether it is open, since when and why, and how many bans it withholds."""
    client = Moderation().redis
    said = breaker.status(client)
    if said.opened_at is None:
        click.echo("closed")
        return
    click.echo(
        f"open since {said.opened_at}, by {said.bans} bans of {said.decided} decided; {said.withheld} bans are withheld"
    )
    if ids:
        for content_id in breaker.withheld(client):
            click.echo(_shown(content_id))


@circuit_breaker.command("close")
@click.option("--apply/--discard", "apply", default=None, help="What becomes of the withheld bans; must be said.")
def close_breaker(apply: bool | None) -> None:
    """Close it: let the withheld bans take effect, or leave those pictures held for a person."""
    if apply is None:
        raise click.UsageError("Say what becomes of the withheld bans: --apply or --discard.")
    configured = settings.load()
    client = Moderation().redis
    done = breaker.close(client, apply=apply, verdict_ttl_s=configured.verdict_ttl_s)
    if done is None:
        click.echo("it is closed already")
        return
    click.echo(
        f"closed; {done.applied} bans took effect, {done.superseded} were settled otherwise, "
        f"{done.discarded} stay with a person"
    )


@click.group("dead-letter")
def dead_letter() -> None:
    """What failed for good."""


@dead_letter.command("list")
def list_letters() -> None:
    """Print them: id, content ID, reason, when, detail."""
    for letter in deadletter.letters(Moderation().redis):
        failed = datetime.fromtimestamp(letter.failed_ms / 1000, UTC).isoformat(timespec="seconds")
        click.echo("\t".join(map(_shown, (letter.id, letter.content_id, letter.reason, failed, letter.detail))))


@dead_letter.command()
@click.argument("letter_ids", nargs=-1, required=True, metavar="ID...")
def replay(letter_ids: tuple[str, ...]) -> None:
    """Put dead letters back into the intake."""
    client = Moderation().redis
    for letter_id in letter_ids:
        click.echo(f"{_shown(deadletter.replay(client, letter_id).content_id)} is back in the intake")


@dead_letter.command()
@click.argument("letter_ids", nargs=-1, required=True, metavar="ID...")
def drop(letter_ids: tuple[str, ...]) -> None:
    """Remove dead letters for good."""
    client = Moderation().redis
    for letter_id in letter_ids:
        click.echo(f"{_shown(deadletter.drop(client, letter_id).content_id)} is dropped")


COMMANDS = (correct, circuit_breaker, dead_letter)


def _shown(text: str) -> str:
    """Fit for a terminal: a malformed ID may be anything, also what moves the cursor or ends the line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
