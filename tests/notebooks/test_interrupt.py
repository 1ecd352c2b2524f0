"""The stop button: a real kernel is interrupted in the middle of `train`, and continues."""

import queue

import pytest
from jupyter_client.manager import start_new_kernel

TRAIN = """
import torch
import cgan_utils as cg
rng = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (64, 1, 4, 4), dtype=torch.uint8, generator=rng)
data = cg.LabelledImages(images, torch.arange(64) % 2, ("a", "b"))
config = cg.CGANConfig(classes=data.classes, image_shape=(1, 4, 4), epochs=1_000_000)
state = cg.train(config, data, "cpu", callback=lambda state: print("epoch", state.epoch))
"""
NEXT = "print(state.step > 0, state.epoch > 0, tuple(cg.sample(state, ['a']).shape))"


def run(client, code, until=None):
    """Run a cell and return what it prints; stop listening once `until` is printed."""
    message, printed = client.execute(code), ""
    while True:
        output = client.get_iopub_msg(timeout=60)
        if output["parent_header"].get("msg_id") != message:
            continue
        if output["msg_type"] == "stream":
            printed += output["content"]["text"]
            if until is not None and until in printed:
                return printed
        assert output["msg_type"] != "error", output["content"]["traceback"]
        if output["msg_type"] == "status" and output["content"]["execution_state"] == "idle":
            return printed


@pytest.mark.process
def test_interrupting_the_kernel_keeps_what_was_trained():
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        run(client, TRAIN, until="epoch 3")
        manager.interrupt_kernel()
        assert run(client, NEXT).strip() == "True True (1, 1, 4, 4)"
    except queue.Empty as silence:
        raise AssertionError("the kernel did not answer") from silence
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
