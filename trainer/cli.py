"""`moderation-trainer`: arguments in, exit codes and sentences out. The trainer's composition root.

The commands themselves are in `trainer.commands`. stdout carries only the result (a version id, a table, a manifest),
stderr everything else.

Exit codes: 0 done; 2 wrong usage or settings; 3 refused by the promotion gate; 4 data not usable (pictures, a
base, the store); 5 another run holds the lock; 130 interrupted.
"""

import sys
from typing import Any, Final

import click

from trainer.commands import cluster, explain, fit, judge, release, retrain
from trainer.errors import DataError, LockedError, RefusedError
from worker import misspelt
from worker.errors import ModerationError, UnavailableError, UsageError, WeightsError

EXIT_CODES: Final[tuple[tuple[type[ModerationError], int], ...]] = (
    (UsageError, 2),
    (DataError, 4),
    (WeightsError, 4),
    (UnavailableError, 4),
    (RefusedError, 3),
    (LockedError, 5),
)
INTERRUPTED: Final = 130


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """Fine-tune, version and release the weights that the moderation worker serves."""
    for sentence in misspelt.sentences():
        click.echo(f"WARNING: {sentence}", err=True)


for command in (
    fit.fit,
    fit.check,
    judge.evaluate_version,
    explain.explain,
    cluster.cluster_pictures,
    release.list_versions,
    release.show,
    release.promote,
    release.rollback,
    retrain.retrain,
):
    cli.add_command(command)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, with every expected error as one sentence on stderr."""
    try:
        returned: Any = cli.main(args=arguments, prog_name="moderation-trainer", standalone_mode=False)
        return returned if isinstance(returned, int) else 0
    except click.ClickException as error:
        return _refuse(f"{error.format_message()} See moderation-trainer --help.", 2)
    except (click.Abort, KeyboardInterrupt):
        return _refuse("Interrupted: nothing is half-written, so run the same command again.", INTERRUPTED)
    except ModerationError as error:
        return _refuse(str(error), next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 4))
    except ModuleNotFoundError as error:
        return _refuse(f"{error.name} is not installed: pip install 'moderation-worker[trainer]'.", 2)
    except OSError as error:  # a full disk, a folder without permission
        where = f" {str(error.filename)!r}" if error.filename else ""
        return _refuse(f"A file{where} cannot be used ({error.strerror or error}): mend that and try again.", 4)


def _refuse(message: str, code: int) -> int:
    line = " ".join(message.split())
    if line.partition(" ")[0].isalpha():  # else it may be a version's id or a path, which must stand as it is
        line = line[:1].upper() + line[1:]
    click.echo(line + ("" if line.endswith((".", "!", "?")) else "."), err=True)
    return code


def main() -> None:
    """The console script."""
    sys.exit(run())


if __name__ == "__main__":
    main()
