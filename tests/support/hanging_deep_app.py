"""As `hanging_app`, on a device that takes two batches at a time, as a GPU does."""

from tests.support.hanging_app import app
from worker.classifier import Classifier

Classifier.in_flight = property(lambda self: 2)

__all__ = ["app"]
