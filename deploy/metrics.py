"""The README's table of metrics, from the code that exports them: `python -m deploy.metrics` prints it."""

from prometheus_client.metrics import MetricWrapperBase

from worker.exporter import FAMILIES
from worker.metrics import Metrics


def markdown_table() -> str:
    """A row a metric: name as Prometheus has it, kind, labels, who exports it, what it is."""
    rows = ["| metric | kind | labels | of | |", "| --- | --- | --- | --- | --- |"]
    made = [value for value in vars(Metrics()).values() if isinstance(value, MetricWrapperBase)]
    for metric in made:
        (family,) = metric.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append(_row(name, family.type, metric._labelnames, "worker", family.documentation))
    rows += [_row(name, "gauge", labels, "service", help_) for name, (help_, labels) in FAMILIES.items()]
    return "\n".join(rows) + "\n"


def _row(name: str, kind: str, labels: tuple[str, ...], of: str, help_: str) -> str:
    return f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {of} | {help_} |"


if __name__ == "__main__":
    print(markdown_table(), end="")
