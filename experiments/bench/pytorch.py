"""One layer by PyTorch, on a CPU or a GPU."""

import importlib.util
from typing import Any

import jax
import numpy as np

from experiments.bench.cases import EPSILON, MOMENTUM, Case
from experiments.bench.turns import Run


def device() -> str | None:
    """Tells whether PyTorch runs on the device of JAX, which a comparison needs."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    found = {"cpu": "cpu"} | ({"gpu": "cuda"} if torch.cuda.is_available() else {})
    return found.get(jax.default_backend())


def layer(case: Case, x, dy, added) -> Run:
    """Channels last in memory, which PyTorch is fastest with."""
    import torch

    here = device()

    def tensor(array):
        if here == "cuda":
            moved = torch.from_dlpack(array)
        else:
            wide = torch.from_numpy(np.array(array, np.float32))
            moved = wide.to(getattr(torch, case.dtype))
        order = (0, moved.ndim - 1, *range(1, moved.ndim - 1))
        return moved.permute(order)  # strides of channels last

    kinds = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}
    kind = getattr(torch.nn, kinds[x.ndim])
    norm = kind(case.shape[-1], eps=EPSILON, momentum=1 - MOMENTUM)
    norm.to(here)
    norm.train(case.operation != "inference")
    backward = case.operation == "forward+backward"
    values = tensor(x).requires_grad_(backward)
    cotangent = tensor(dy) if backward else None
    other = None if added is None else tensor(added).requires_grad_(backward)
    inputs = [values, norm.weight, norm.bias, *([] if other is None else [other])]

    def run():
        with torch.set_grad_enabled(backward):
            y = norm(values)
            y = y if other is None else y + other
            y = y if case.activation == "none" else torch.relu(y)
        return y, torch.autograd.grad(y, inputs, cotangent) if backward else None

    return Run(run, wait=_done)


def step(dtype: str, images: int) -> Run:
    """A training step of torchvision's ResNet-50 on a GPU, channels last."""
    import torch
    from torchvision.models import resnet50  # pyright: ignore

    model = resnet50().to("cuda", memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(images, 3, 224, 224, device="cuda")
    x = x.to(memory_format=torch.channels_last)
    label = torch.arange(images, device="cuda") % 1000
    # As XLA computes products of float32 on such a device.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True

    def start():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = torch.nn.functional.cross_entropy(model(x), label)
        loss.backward()
        optimizer.step()
        return loss

    return Run(start, wait=_done)


def _done(results: Any) -> Any:
    """Waits for the device of `device`, and returns the results."""
    import torch

    if device() == "cuda":
        torch.cuda.synchronize()
    return results
