"""The README's table of metrics."""

from deploy.metrics import markdown_table
from tests.support.worker import REPOSITORY


def test_the_readmes_table_is_the_generated_one() -> None:
    """README.md names every metric that the code exports; `python -m deploy.metrics` prints the table."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert readme.partition("<!-- metrics -->\n")[2].startswith(markdown_table() + "<!-- /metrics -->\n")
