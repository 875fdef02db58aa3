"""What a process says: text lines for people, or JSON lines for a log store; one format for all of it.

A line a claim and a line a published batch, never one a picture, at INFO. Knows no settings and no content.
"""

import logging
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
JSON_FIELDS = "%(levelname)s %(name)s %(message)s"


def set_up(level: str, format: Literal["text", "json"]) -> None:
    """Sends this process's log to stderr in that format, in place of whatever was set up before.

    A JSON line has `time` (UTC), `level`, `logger`, `message`, where there was an error `exc_info`, and what a line
    carries besides: `stream`, `content_ids`, `undecided` (content ID to reason), `seconds` …
    """
    handler = logging.StreamHandler()
    if format == "json":
        renamed = {"levelname": "level", "name": "logger"}
        handler.setFormatter(JsonFormatter(JSON_FIELDS, rename_fields=renamed, timestamp="time"))
    else:
        handler.setFormatter(logging.Formatter(TEXT_FORMAT))
    logging.captureWarnings(format == "json")  # or a library's warning breaks the lines
    # DEBUG is for what is ours: a library's may hold a store's signatures and session tokens.
    logging.basicConfig(level="INFO" if level == "DEBUG" else level, handlers=[handler], force=True)
    logging.getLogger("worker").setLevel(level)
    # What goes wrong with a task is said in a sentence of ours; Celery adds a traceback to each.
    logging.getLogger("celery.app.trace").setLevel(logging.ERROR)
