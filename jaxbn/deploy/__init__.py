"""From training to use: recalibrate, adapt, freeze and fold."""

from jaxbn.deploy.adapt import adapt as adapt
from jaxbn.deploy.fold import fold as fold
from jaxbn.deploy.fold_calls import FoldReport as FoldReport
from jaxbn.deploy.fold_model import fold_linen as fold_linen
from jaxbn.deploy.fold_model import strip_linen as strip_linen
from jaxbn.deploy.freeze import Frozen as Frozen
from jaxbn.deploy.freeze import freeze as freeze
from jaxbn.deploy.linen import linen_model as linen_model
from jaxbn.deploy.model import Model as Model
from jaxbn.deploy.nnx import nnx_model as nnx_model
from jaxbn.deploy.nnx_fold import fold_nnx as fold_nnx
from jaxbn.deploy.recalibrate import recalibrate as recalibrate
