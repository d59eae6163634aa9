"""From training to use: look at, recalibrate, adapt, freeze and fold."""

from jaxbn.deploy.adapt import adapt
from jaxbn.deploy.calls import FoldReport
from jaxbn.deploy.fold import fold
from jaxbn.deploy.freeze import Frozen, freeze
from jaxbn.deploy.linen_fold import fold_linen, strip_linen
from jaxbn.deploy.linen_model import linen_model
from jaxbn.deploy.model import Model
from jaxbn.deploy.nnx_fold import fold_nnx
from jaxbn.deploy.nnx_model import nnx_model
from jaxbn.deploy.recalibrate import recalibrate
from jaxbn.deploy.summary import LayerSummary, Summary, summary

__all__ = [
    "FoldReport",
    "Frozen",
    "LayerSummary",
    "Model",
    "Summary",
    "adapt",
    "fold",
    "fold_linen",
    "fold_nnx",
    "freeze",
    "linen_model",
    "nnx_model",
    "recalibrate",
    "strip_linen",
    "summary",
]
