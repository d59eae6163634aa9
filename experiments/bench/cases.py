"""The cases of `bench layer`: shapes, types, operations."""

from dataclasses import dataclass
from typing import Literal

Operation = Literal["inference", "forward", "forward+backward"]
Activation = Literal["none", "relu", "add+relu"]

# Height and width, channels.
RESNET50 = (
    (112, 64), (56, 64), (56, 128), (56, 256), (28, 128), (28, 256), (28, 512),
    (14, 256), (14, 512), (14, 1024), (7, 512), (7, 2048),
)  # fmt: skip
MOBILENETV2 = (
    (112, 32), (112, 96), (112, 16), (56, 144), (56, 24), (28, 192), (28, 32),
    (14, 384), (14, 576), (14, 96), (7, 960), (7, 320), (7, 1280),
)  # fmt: skip
DENSE = ((256, 512), (1024, 1024), (4096, 1024), (8192, 1024))
ODD = ((1000, 17), (333, 1001), (5, 7, 9, 11, 13), (1, 100_000, 3), (64, 1))
DTYPES = ("float32", "bfloat16")
EPSILON, MOMENTUM = 1e-5, 0.99

# Passes over an array of the size of x that nobody can save: x is read twice where the
# statistics are needed first, the backward pass reads x and dy twice and writes dx.
FLOOR = {
    ("inference", "none"): 2,
    ("inference", "add+relu"): 3,
    ("forward", "none"): 3,
    ("forward", "add+relu"): 4,
    ("forward+backward", "none"): 8,
    # The cotangent of what is added is written once and read once more.
    ("forward+backward", "add+relu"): 11,
}


@dataclass(frozen=True)
class Case:
    """One layer at work.

    Attributes:
        group: the network or family that the shape is from.
        shape: of x, features last.
        everyone: whether all libraries run, or only Flax and PyTorch.
    """

    group: str
    shape: tuple[int, ...]
    dtype: str
    operation: Operation = "forward+backward"
    activation: Activation = "none"
    everyone: bool = False

    @property
    def floor(self) -> int:
        """Passes over memory that the operation needs at least."""
        key = "add+relu" if self.activation == "add+relu" else "none"
        return FLOOR[self.operation, key]

    @property
    def name(self) -> str:
        """As printed."""
        return "x".join(map(str, self.shape))


def plan(*, quick: bool) -> list[Case]:
    """The cases of one run: all of them, or about a minute's worth."""
    if quick:
        shapes = [(8, 56, 56, 64), (8, 28, 28, 512), (8, 7, 7, 2048), (4096, 1024)]
        return [
            Case("quick", shape, dtype, operation)
            for dtype in DTYPES
            for operation in ("inference", "forward+backward")
            for shape in shapes
        ]
    cases = []
    for dtype in DTYPES:
        cases += _bars(dtype)
        cases += [Case("MobileNetV2", (8, s, s, c), dtype) for s, c in MOBILENETV2]
        cases += [Case("odd", shape, dtype) for shape in ODD]
        for activation in ("relu", "add+relu"):
            for operation in ("inference", "forward+backward"):
                cases += [
                    Case("ResNet-50", (8, s, s, c), dtype, operation, activation)
                    for s, c in RESNET50[:: 1 if operation != "inference" else 3]
                ]
        cases += [
            Case("all libraries", shape, dtype, everyone=True)
            for shape in ((8, 56, 56, 64), (8, 14, 14, 1024), (4096, 1024))
        ]
    return cases


def _bars(dtype: str) -> list[Case]:
    """ResNet-50 at batch 8 and 32 and dense layers, without activation."""
    cases = []
    for operation in ("forward+backward", "forward", "inference"):
        for batch in (8, 32):
            sizes = RESNET50 if operation == "forward+backward" else RESNET50[1::2]
            cases += [
                Case("ResNet-50", (batch, s, s, c), dtype, operation) for s, c in sizes
            ]
        cases += [Case("dense", shape, dtype, operation) for shape in DENSE]
    return cases
