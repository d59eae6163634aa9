"""Layers in and out of other frameworks, and checks that both sides agree."""

from jaxbn.interop.equinox import check_equinox, from_equinox, to_equinox
from jaxbn.interop.haiku import check_haiku, from_haiku, to_haiku
from jaxbn.interop.keras import check_keras, from_keras, to_keras
from jaxbn.interop.layer import Layer
from jaxbn.interop.linen import check_linen, from_linen, to_linen
from jaxbn.interop.nnx import check_nnx, from_nnx, to_nnx
from jaxbn.interop.peers import Difference, Peer, compare
from jaxbn.interop.safetensors import read_safetensors, write_safetensors
from jaxbn.interop.torch import from_torch, to_torch, torch_layers
from jaxbn.interop.torch_checks import check_torch, check_torch_model
from jaxbn.interop.torch_model import TorchModel

__all__ = [
    "Difference",
    "Layer",
    "Peer",
    "TorchModel",
    "check_equinox",
    "check_haiku",
    "check_keras",
    "check_linen",
    "check_nnx",
    "check_torch",
    "check_torch_model",
    "compare",
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_nnx",
    "from_torch",
    "read_safetensors",
    "to_equinox",
    "to_haiku",
    "to_keras",
    "to_linen",
    "to_nnx",
    "to_torch",
    "torch_layers",
    "write_safetensors",
]
