"""Layers in and out of other frameworks, and checks that both sides agree."""

from jaxbn.interop.equinox import check_equinox as check_equinox
from jaxbn.interop.equinox import from_equinox as from_equinox
from jaxbn.interop.equinox import to_equinox as to_equinox
from jaxbn.interop.haiku import check_haiku as check_haiku
from jaxbn.interop.haiku import from_haiku as from_haiku
from jaxbn.interop.haiku import to_haiku as to_haiku
from jaxbn.interop.keras import check_keras as check_keras
from jaxbn.interop.keras import from_keras as from_keras
from jaxbn.interop.keras import to_keras as to_keras
from jaxbn.interop.layer import Layer as Layer
from jaxbn.interop.linen import check_linen as check_linen
from jaxbn.interop.linen import from_linen as from_linen
from jaxbn.interop.linen import to_linen as to_linen
from jaxbn.interop.nnx import check_nnx as check_nnx
from jaxbn.interop.nnx import from_nnx as from_nnx
from jaxbn.interop.nnx import to_nnx as to_nnx
from jaxbn.interop.peers import Difference as Difference
from jaxbn.interop.peers import Peer as Peer
from jaxbn.interop.peers import compare as compare
from jaxbn.interop.safetensors import read_safetensors as read_safetensors
from jaxbn.interop.safetensors import write_safetensors as write_safetensors
from jaxbn.interop.torch import check_torch as check_torch
from jaxbn.interop.torch import from_torch as from_torch
from jaxbn.interop.torch import to_torch as to_torch
from jaxbn.interop.torch import torch_layers as torch_layers
