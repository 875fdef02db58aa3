"""The worker one writes first: Celery, one task a picture, prefork, VGG-11 eager in fp32, Pillow and torchvision."""

import os
from functools import cache

import redis
import torch
from celery import Celery
from PIL import Image
from torch import nn
from torchvision import transforms

from trainer.bases import random_base
from worker.model import network as networks

app = Celery("naive", broker=os.environ["NAIVE_BROKER_URL"], set_as_current=False)
app.conf.update(
    task_ignore_result=True, task_default_queue="naive", broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
)  # fmt: skip

LABELS = ("approved", "not_suitable", "risked")
TRANSFORM = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


@cache
def network() -> nn.Module:
    """The network, built in the child process; one thread a child, as many children as cores."""
    torch.set_num_threads(1)
    module = networks.get("vgg11").build()
    module.load_state_dict(random_base(networks.get("vgg11"), 0), strict=False)
    return module.eval().to(os.environ["NAIVE_DEVICE"])


@cache
def connection() -> redis.Redis:
    """Where verdicts go."""
    return redis.Redis.from_url(os.environ["NAIVE_BROKER_URL"])


@app.task(name="naive")
def judge(content_id: str) -> None:
    """One picture: open, transform, forward, write the label."""
    with Image.open(os.path.join(os.environ["NAIVE_CONTENT"], content_id)) as image:
        pixels = TRANSFORM(image.convert("RGB"))
    with torch.no_grad():
        label = LABELS[int(network()(pixels[None].to(os.environ["NAIVE_DEVICE"])).argmax())]
    connection().xadd("naive:verdicts", {"content_id": content_id, "label": label})
