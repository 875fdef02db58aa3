"""What Celery itself takes for one message: a task that does nothing, one content ID a task."""

import os

from celery import Celery

app = Celery("noop", broker=os.environ["NOOP_BROKER_URL"], set_as_current=False)
app.conf.update(
    task_ignore_result=True, task_acks_late=True, task_default_queue="noop", worker_redirect_stdouts=False,
    broker_connection_retry_on_startup=True,
)  # fmt: skip


@app.task(name="noop")
def noop(content_id: str) -> None:
    """Does nothing."""
