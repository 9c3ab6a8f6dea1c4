"""What the processes of ``learning.launch.together`` do in its tests: little, so that they start fast."""

import json
import os
import signal
import time

import torch

from climapred.learning.order import Share


def tell(folder):
    """Write down what this process has been told."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    told = {name: os.environ[name] for name in names} | {"threads": torch.get_num_threads()}
    (folder / f"{Share.current().rank}.json").write_text(json.dumps(told))


def fail(rank, message):
    if Share.current().rank == rank:
        raise ValueError(message)


def die(rank, folder):
    """Be killed when the others wait."""
    if Share.current().rank != rank:
        wait_for_ever(folder)
    while not list(folder.glob("waiting *")):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


def leave(code):
    raise SystemExit(code)


def wait_for_ever(folder):
    (folder / f"waiting {os.getpid()}").touch()
    time.sleep(1000)
