"""Options of training at scale, and the named configurations.

An option is a field; `CONFIGS` are the values that a name stands for, and the command
line overrides single fields of them.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from msgspec import Meta

from experiments.common.options import Natural, Positive, Rate, Share


@dataclass(frozen=True)
class Model:
    """The network."""

    depth: int = 20
    """Layers: 20, 32, 44, 56 or 110 for small images; 50 for images of ImageNet."""
    api: Literal["linen", "nnx"] = "linen"
    """Module system of Flax."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the network computes in; parameters and statistics are float32."""
    norm: Literal["jaxbn", "flax"] = "jaxbn"
    """Library of the normalization; flax for comparisons, with `--bn-sync global`."""
    bn_sync: str = "global"
    """The examples that share the statistics of a step: `global`, the whole batch;
    `device`, the examples of each device; `groups:N`, those of N neighbouring devices;
    `ghost:N`, N consecutive examples."""
    bn_momentum: Share = 0.9
    """Weight of the old running statistics."""
    zero_init_last_scale: bool = True
    """Start the last scale of every residual block at zero."""


@dataclass(frozen=True)
class Data:
    """The data."""

    source: Literal[
        "fake", "cifar-binary", "mnist-idx", "arrayrecord", "tfds", "hf"
    ] = "fake"
    """The source of the examples; `fake` makes them up, the same ones every time."""
    data_dir: Path | None = None
    """Directory of the files."""
    dataset: str | None = None
    """Name of the data set, for `tfds` and `hf`."""
    image_size: Positive = 32
    """Height and width of the images that the network sees."""
    channels: Positive = 3
    """Channels of the images."""
    classes: Annotated[int, Meta(ge=2)] = 10
    """Classes."""
    fake_train_examples: Positive = 2048
    """Training examples that `fake` makes up."""
    fake_eval_examples: Positive = 500
    """Evaluation examples that `fake` makes up."""
    augment: bool = True
    """Random crops and flips of the training images."""
    loader_threads: Natural = 2
    """Threads that read and augment, per process; 0: between the steps."""


@dataclass(frozen=True)
class Optimizer:
    """SGD with momentum."""

    batch_size: Positive = 128
    """Examples per step, of all devices of all processes together."""
    lr: Rate = 0.1
    """Highest learning rate, for a batch of `lr_batch_size`; grows with the batch."""
    lr_batch_size: Natural = 128
    """Batch that `lr` is for; 0: `lr` is not scaled."""
    warmup_steps: Natural = 0
    """Steps over which the learning rate rises from zero."""
    steps: Positive = 64_000
    """Training steps."""
    momentum: Share = 0.9
    """Momentum."""
    nesterov: bool = False
    """Nesterov momentum."""
    weight_decay: Annotated[float, Meta(ge=0)] = 1e-4
    """L2 penalty on kernels; scale and bias have none."""
    label_smoothing: Share = 0.0
    """Share of the label that is spread over all classes."""


@dataclass(frozen=True)
class Devices:
    """Devices and processes."""

    parallel: Literal["jit", "explicit", "shard_map", "pmap"] = "jit"
    """The way a step is spread: `jit` with automatic or `explicit` mesh axes, where the
    program is that of one device; `shard_map` or `pmap`, one program per device."""
    model_devices: Positive = 1
    """Devices that share one copy of the weights (`jit` only); the others share the
    batch."""
    coordinator: str | None = None
    """HOST:PORT of process 0. Found by itself under Slurm, Open MPI and on TPU pods
    with `--distributed`."""
    processes: Annotated[int | None, Meta(ge=1)] = None
    """Number of processes."""
    process_id: Annotated[int | None, Meta(ge=0)] = None
    """Number of this process, from 0."""
    distributed: bool = False
    """Several processes, found in the environment (Slurm, Open MPI, TPU pods)."""
    process_timeout: Positive = 120
    """Seconds after which a step that does not end counts as a lost process."""
    phase_timeout: Positive = 1800
    """The same for a phase that takes longer: starting and compiling, saving, the first
    batch of an evaluation."""
    cpu_devices: Annotated[int | None, Meta(ge=1)] = None
    """Simulated devices of this process, on a CPU."""


@dataclass(frozen=True)
class Session:
    """This session of a run; none of it changes what is computed."""

    out: Path = Path("runs/scale")
    """Directory of the run, new or empty unless `--resume` is given."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the run in `--out`, or begin it if there is none."""
    checkpoint_every: Positive = 1000
    """Steps between two checkpoints."""
    keep: Annotated[int, Meta(ge=2)] = 2
    """Checkpoints that are kept."""
    log_every: Positive = 20
    """Steps between two lines of `metrics.jsonl`."""
    profile: str | None = None
    """START:COUNT, the steps of which a trace for XProf is written to `--out`."""
    compilation_cache: Path | None = None
    """Directory that keeps compiled programs for the next session."""
    tensorboard: bool = False
    """Write metrics for TensorBoard as well."""


@dataclass(frozen=True)
class ScaleConfig:
    """Trains a ResNet on one device, on a mesh, or on many hosts."""

    config: str = "cifar10-resnet20"
    """Name of the configuration that the other options change."""
    model: tyro.conf.OmitArgPrefixes[Model] = field(default_factory=Model)
    data: tyro.conf.OmitArgPrefixes[Data] = field(default_factory=Data)
    optimizer: tyro.conf.OmitArgPrefixes[Optimizer] = field(default_factory=Optimizer)
    devices: tyro.conf.OmitArgPrefixes[Devices] = field(default_factory=Devices)
    session: tyro.conf.OmitArgPrefixes[Session] = field(default_factory=Session)
    seed: Natural = 0
    """Seed of initial weights, order of the data, and augmentation."""
    eval_every: Positive = 1000
    """Steps between two evaluations."""
    stop_after_nonfinite: Positive = 10
    """Non-finite steps in a row, each of them skipped, after which the run stops."""

    @property
    def out(self) -> Path:
        return self.session.out

    @property
    def resume(self) -> bool:
        return self.session.resume


_CIFAR = Data(source="hf", dataset="uoft-cs/cifar10")
CONFIGS = {
    "cifar10-resnet20": ScaleConfig(data=_CIFAR),
    "cifar10-resnet56": ScaleConfig(
        config="cifar10-resnet56", model=Model(depth=56), data=_CIFAR
    ),
    "imagenet-resnet50": ScaleConfig(
        config="imagenet-resnet50",
        model=Model(depth=50, dtype="bfloat16"),
        data=Data(
            source="tfds",
            dataset="imagenet2012",
            image_size=224,
            classes=1000,
            loader_threads=16,
        ),
        optimizer=Optimizer(
            batch_size=1024,
            lr_batch_size=256,
            warmup_steps=6_255,
            steps=125_100,
            nesterov=True,
            label_smoothing=0.1,
        ),
        eval_every=1_251,
    ),
}
