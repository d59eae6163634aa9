"""No wrong argument of a public function or module is accepted, or ends in a raw error.

Each argument of each call below is replaced by each of the wrong values. The outcome is
either one that `SENSIBLE` allows, or an error of ours in the style of the house. Those
of `jaxbn.interop` have a test of their own.
"""

import enum
import functools
import inspect
import re
import traceback

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wrong_values
from flax import nnx

import jaxbn
import jaxbn.linen
import jaxbn.nnx
from jaxbn import deploy, optim, variants

pytestmark = pytest.mark.slow

# `argument` must <requirement>, got <value>. <What to do.>
STYLE = re.compile(r"^`\w[^`]*` must .+, got .+\. \S.*[.`]$", re.DOTALL)
ERRORS = (ValueError, TypeError, NotImplementedError)

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
STATE, MOMENTS = jaxbn.init_state(3), jaxbn.moments(X)


class Word(enum.Enum):
    RELU = "relu"


def mixing_scan(x):
    return jax.lax.scan(lambda c, row: (c + row, c), x[0], x)[1]


WRONG = {
    **wrong_values.WRONG,
    "numpy false": np.False_,
    "zero": 0,
    "huge": 10**30,
    "negative float": -0.5,
    "large": 1e300,
    "word": Word.RELU,
    "set": {1, 2},
    "strings": ["a", "b"],
    "nested": {"a": {"b": 1}},
    "text": {"a": "b"},
    "plain state": {"mean": np.zeros(3), "var": np.ones(3), "count": np.ones(3)},
    "class": nn.BatchNorm,
    "type": int,
    "function": lambda *_, **__: 3,
    "sum": lambda x, *_: jnp.sum(x),
    "softmax": jax.nn.softmax,
    "sort": jnp.sort,
    "cumsum": lambda x: jnp.cumsum(x, 0),
    "reverse": lambda x: x[::-1],
    "scan": mixing_scan,
    "scalar": jnp.array(2.0),
    "index": jnp.array(5),
    "float16": np.float16(0.5),
    "no values": np.zeros((0, 3), np.float32),
    "int array": np.full(3, 7),
    "complex array": np.ones((4, 3), np.complex64),
    "complex vector": np.ones(3, np.complex64),
    "negative array": np.full(3, -1.0, np.float32),
    "nan array": np.full(3, np.nan, np.float32),
    "float8": jnp.ones((4, 3), jnp.float8_e4m3fn),
    "key": jax.random.key(0),
    "keys": jax.random.split(jax.random.key(0), 3),
    "dtype": np.dtype("int8"),
    "linen": nn.Dense(3),
    "nnx": nnx.Linear(3, 3, rngs=nnx.Rngs(0)),
    "state": STATE,
    "states": {"a": STATE},
    "state of two": jaxbn.init_state(2),
    "state of strings": jaxbn.BatchNormState("a", "b", "c"),  # type: ignore
    "state of nan": STATE._replace(mean=np.full(3, np.nan)),
    "state of -1": STATE._replace(var=np.full(3, -1.0)),
    "moments": MOMENTS,
    "moments of -1": MOMENTS._replace(m2=np.full(3, -1.0)),
    "moments of strings": jaxbn.Moments("a", "b", "c"),  # type: ignore
    "renorm state": variants.init_renorm_state(3),
}


def rows():
    return [X[:2], X]


def collect(state, batch):
    return jaxbn.moments(batch)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))


@functools.cache
def linen_net():
    module = Net()
    return {"module": module, "variables": module.init(jax.random.key(0), X)}


def nnx_net():
    rngs = nnx.Rngs(0)
    net = nnx.Sequential(nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs))
    net.eval()
    return net


def run_net(net, x):
    return net(x)


@functools.cache
def strip_arguments():
    net = linen_net()
    variables, report = deploy.fold_linen(**net, example=X)
    return {"variables": variables, "report": report}


def frozen(**given):
    parts = {k: given.pop(k) for k in ("center", "slope", "offset")}
    return deploy.Frozen(**parts)(**given)


def decayed(updates, params, **given):
    decay = optim.decay_scale(**given)
    return decay.update(updates, decay.init(params), params)


def schedule(step, **given):
    bounds = variants.renorm_schedule(**given)
    return bounds.r_max(step), bounds.d_max(step)


SHARED = {
    "axis": -1,
    "epsilon": 1e-5,
    "activation": None,
    "residual": None,
    "implementation": None,
}
AFFINE = {"scale": np.ones(3, np.float32), "bias": None}
INFER = {"x": X, "state": STATE, **AFFINE, **SHARED}
UPDATE = {
    "momentum": 0.9,
    "debias": True,
    "unbiased": False,
    "skip_nonfinite": False,
}
TRAIN = {**INFER, **UPDATE, "axis_name": None, "axis_groups": None, "where": None}
TRAIN["weights"] = None
DOMAINS = variants.init_domain_state(2, 3)
STEPS = variants.init_timestep_state(2, 3)
RENORM = variants.init_renorm_state(3)


def several(options, states, **others):
    given = {k: v for k, v in options.items() if k != "state"}
    return lambda: {**given, "states": states, **others}


def without(options, *names):
    return {k: v for k, v in options.items() if k not in names}


def run_converting(**arguments):
    with jaxbn.linen.converting(**arguments):
        nn.BatchNorm(True).init(jax.random.key(0), X)


SCALES = {"norm": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}

# What is right, made anew for each call.
CALLS = {
    "batch_norm": (jaxbn.batch_norm, lambda: {**TRAIN, "save": "input"}),
    "batch_norm_inference": (jaxbn.batch_norm_inference, lambda: INFER),
    "init_state": (jaxbn.init_state, lambda: {"num_features": 3, "dtype": np.float32}),
    "merge": (jaxbn.merge, lambda: {"first": MOMENTS, "second": MOMENTS}),
    "moments": (
        jaxbn.moments,
        lambda: {
            "x": X,
            "axis": -1,
            "where": None,
            "weights": None,
            "axis_name": None,
            "axis_groups": None,
            "implementation": None,
        },
    ),
    "normalize": (
        jaxbn.normalize,
        lambda: {
            "x": X,
            "mean": np.zeros(3),
            "var": np.ones(3),
            **AFFINE,
            **SHARED,
        },
    ),
    "recompute_policy": (
        jaxbn.recompute_policy,
        lambda: {"primitive": jax.lax.add_p},
    ),
    "update": (jaxbn.update, lambda: {"state": STATE, "moments": MOMENTS, **UPDATE}),
    "init_domain_state": (
        variants.init_domain_state,
        lambda: {"num_domains": 2, "num_features": 3},
    ),
    "domain_batch_norm": (
        variants.domain_batch_norm,
        several(TRAIN, DOMAINS, domain=np.array([0, 1, 0, 1])),
    ),
    "domain_batch_norm_inference": (
        variants.domain_batch_norm_inference,
        several(INFER, DOMAINS, domain=1),
    ),
    "strip_domain": (
        variants.strip_domain,
        lambda: {"tree": DOMAINS, "domain": 1, "num_domains": 2},
    ),
    "eval_blend": (
        variants.eval_blend,
        lambda: {**INFER, "where": None, "weights": None, "alpha": 0.5},
    ),
    "fit_eval_blend": (
        variants.fit_eval_blend,
        lambda: {
            "x": X[None],
            "state": STATE,
            "axis": -1,
            "where": None,
            "epsilon": 1e-5,
        },
    ),
    "ghost_batch_norm": (
        variants.ghost_batch_norm,
        lambda: {
            **without(TRAIN, "axis_groups"),
            "ghost_batch_size": 2,
            "update": "pooled",
        },
    ),
    "init_timestep_state": (
        variants.init_timestep_state,
        lambda: {"max_steps": 2, "num_features": 3},
    ),
    "timestep_batch_norm": (
        variants.timestep_batch_norm,
        several(TRAIN, STEPS, t=1),
    ),
    "timestep_batch_norm_inference": (
        variants.timestep_batch_norm_inference,
        several(INFER, STEPS, t=1),
    ),
    "init_renorm_state": (variants.init_renorm_state, lambda: {"num_features": 3}),
    "batch_renorm": (
        variants.batch_renorm,
        lambda: {**TRAIN, "state": RENORM, "r_max": 3.0, "d_max": 5.0},
    ),
    "batch_renorm_inference": (
        variants.batch_renorm_inference,
        lambda: {**without(INFER, "epsilon"), "state": RENORM},
    ),
    "renorm_schedule": (
        schedule,
        lambda: {
            "step": 1,
            "start": 1,
            "r_end": 2,
            "d_end": 3,
            "r_max": 3.0,
            "d_max": 5.0,
        },
    ),
    "adapt": (
        deploy.adapt,
        lambda: {
            "states": STATE,
            "moments": MOMENTS,
            "prior_count": 2,
            "count": None,
        },
    ),
    "fold": (
        deploy.fold,
        lambda: {
            "kernel": np.ones((2, 3), np.float32),
            "bias": None,
            "frozen": deploy.freeze(STATE),
            "order": "after",
            "axis": -1,
            "input_axis": -2,
            "groups": 1,
        },
    ),
    "freeze": (deploy.freeze, lambda: {"state": STATE, **AFFINE, "epsilon": 1e-5}),
    "Frozen": (
        frozen,
        lambda: {
            **deploy.freeze(STATE)._asdict(),
            "x": X,
            **without(SHARED, "epsilon"),
        },
    ),
    "recalibrate": (
        deploy.recalibrate,
        lambda: {
            "collect": collect,
            "states": STATE,
            "batches": rows(),
            "passes": 1,
            "scan": False,
            "axis_name": None,
            "unbiased": False,
        },
    ),
    "recalibrate by scan": (
        deploy.recalibrate,
        lambda: {
            "collect": collect,
            "states": STATE,
            "batches": X[None],
            "scan": True,
        },
    ),
    "linen_model": (
        deploy.linen_model,
        lambda: {**linen_net(), "call": run_net, "rngs": None},
    ),
    "fold_linen": (
        deploy.fold_linen,
        lambda: {**linen_net(), "example": X, "call": run_net, "tolerance": None},
    ),
    "strip_linen": (deploy.strip_linen, strip_arguments),
    "nnx_model": (deploy.nnx_model, lambda: {"model": nnx_net(), "call": run_net}),
    "fold_nnx": (
        deploy.fold_nnx,
        lambda: {
            "model": nnx_net(),
            "example": X,
            "call": run_net,
            "tolerance": None,
        },
    ),
    "init_accumulation": (optim.init_accumulation, lambda: {"states": STATE}),
    "accumulate": (
        optim.accumulate,
        lambda: {
            "accumulated": optim.init_accumulation(STATE),
            "states": STATE,
            "moments": MOMENTS,
            "ready": True,
            **UPDATE,
        },
    ),
    "decay_scale": (
        decayed,
        lambda: {
            "rate": 0.1,
            "target": 1.0,
            "names": ("scale",),
            "updates": SCALES,
            "params": SCALES,
        },
    ),
    "weight_decay_mask": (
        optim.weight_decay_mask,
        lambda: {"params": SCALES, "names": ("scale", "bias")},
    ),
    "frozen_mask": (
        optim.frozen_mask,
        lambda: {
            "params": SCALES,
            "statistics": {"norm": {"mean": jnp.zeros(3), "var": jnp.ones(3)}},
            "only": None,
        },
    ),
    "summary": (
        deploy.summary,
        lambda: {
            "model": deploy.nnx_model(nnx_net(), call=run_net),
            "batch": X,
            "dead_below": 1e-8,
        },
    ),
    "convert": (
        jaxbn.nnx.convert,
        lambda: {"model": nnx_net(), "only": None, "to": None, "momentum": 0.9},
    ),
    "reset_statistics of nnx": (
        jaxbn.nnx.reset_statistics,
        lambda: {"model": nnx_net(), "only": None},
    ),
    "reset_statistics of linen": (
        jaxbn.linen.reset_statistics,
        lambda: {"variables": linen_net()["variables"], "only": None},
    ),
    "converting": (run_converting, lambda: {"only": None, "to": None, "epsilon": 1e-5}),
    "zero_last_scale": (
        optim.zero_last_scale,
        lambda: {"params": {"Block": SCALES}, "block": "Block", "norm": ".*"},
    ),
    "keep_finite": (
        optim.keep_finite,
        lambda: {"new": SCALES, "old": SCALES, "watch": None, "axis_name": None},
    ),
}

FLAX = {"parent", "name"}  # Flax checks what is its own
EXAMPLES = {
    "BatchNorm": ({}, {}),
    "GhostBatchNorm": ({"ghost_batch_size": 2}, {}),
    "BatchRenorm": ({}, {}),
    "TimestepBatchNorm": ({"max_steps": 2}, {"t": 1}),
    "DomainBatchNorm": ({"num_domains": 2}, {"domain": np.array([0, 1, 0, 1])}),
    "EvalBlendBatchNorm": ({}, {}),
}
CALL = {"x": X, "mask": None, "residual": None}


def linen_layer(name):
    kind = getattr(jaxbn.linen, name)
    options, which = EXAMPLES[name]
    call = {**CALL, **which}
    fields = {
        k: v for k, v in inspect.signature(kind).parameters.items() if k not in FLAX
    }
    right = {k: v.default for k, v in fields.items()} | options
    right["use_running_average"] = False

    def run(**given):
        layer = kind(**{k: given[k] for k in right})
        others = {k: given[k] for k in call}
        variables = layer.init(jax.random.key(0), **others)
        return layer.apply(variables, **others, mutable="batch_stats")

    return run, lambda: {**right, **call}


def nnx_layer(name):
    kind = getattr(jaxbn.nnx, name)
    options, which = EXAMPLES[name]
    call = {**CALL, **which}
    fields = {
        **inspect.signature(jaxbn.nnx.BatchNorm.__init__).parameters,
        **inspect.signature(kind.__init__).parameters,
    }
    for name in ("self", "rngs", "options"):  # Flax checks `rngs`
        fields.pop(name, None)
    right = {k: v.default for k, v in fields.items()} | options
    right["num_features"] = 3

    def run(**given):
        layer = kind(**{k: given[k] for k in right}, rngs=nnx.Rngs(0))
        return layer(**{k: given[k] for k in call})

    return run, lambda: {**right, **call}


VARIANTS = tuple(EXAMPLES.keys() - {"BatchNorm"})
BASE = nnx_layer("BatchNorm")[1]() | linen_layer("BatchNorm")[1]()
DIFFERENT = {"x", "axis", "axis_groups", "save", "scale_init", "mask"}
for _name in EXAMPLES:
    CALLS[f"linen.{_name}"] = linen_layer(_name)
    CALLS[f"nnx.{_name}"] = nnx_layer(_name)


FUNCTIONS = {
    "function", "sum", "softmax", "sort", "cumsum", "reverse", "scan", "linen", "nnx",
}  # fmt: skip
# Errors of the function or the model that was handed over are its own.
OWN = {
    "activation": {"linen"},
    "collect": FUNCTIONS,
    "only": FUNCTIONS,
    "summary.batch": set(WRONG),
    "call": FUNCTIONS,
    "bias_init": FUNCTIONS,
    "scale_init": FUNCTIONS,
    "promote_dtype": FUNCTIONS,
    "example": set(WRONG),
    "fold_linen.module": {"linen"},
    "fold_linen.variables": set(WRONG),
    **{
        f"{kind}.BatchRenorm.{k}": FUNCTIONS
        for kind in ("linen", "nnx")
        for k in ("r_max", "d_max")
    },
    # Flax's own text about a mode that is nowhere given.
    "use_running_average": {"none"},
}

FLAG = {"true", "numpy false"}
MASK = {"none", "true", "numpy false", "bool array"}
NUMBERS = {"int", "huge", "float", "scalar", "index", "large"}
NOT_NEGATIVE = NUMBERS | {"zero", "float16"}
VECTOR = {"none", "int array", "negative array", "nan array"}
SIZE = {"int", "index"}
TREES = {"none", "list", "tuple", "dict"}  # of no leaf at all
BATCH = {"matrix", "no values", "negative array", "nan array"}
COMPLEX = {"complex array", "complex vector"}
EMPTY = {"list", "tuple"}
NAMES = {
    "string", "strings", "text array", "no values", "state of strings",
    "moments of strings",
}  # fmt: skip
ANY = None  # of which nothing is said
# By argument, or function and argument: what looks wrong and has a meaning.
SENSIBLE = {
    "scale": VECTOR,
    "bias": VECTOR,
    "residual": {"none", "float8"},  # any real number
    "where": MASK,
    **{
        f"{name}.{argument}": VECTOR | {"float8"}  # one for each value
        for name in (
            "batch_norm", "batch_norm_inference", "normalize", "timestep_batch_norm",
            "timestep_batch_norm_inference", "batch_renorm_inference",
        )
        for argument in ("scale", "bias")
    },
    "weights": MASK | NOT_NEGATIVE - {"large", "huge"} | {"int array", "float8"},
    "mask": MASK,
    "epsilon": NUMBERS - {"large"} | {"float16"},
    "momentum": {"none", "zero", "float16"},
    "axis_name": {"none", *EMPTY},  # no axis
    "axis_groups": {"none"},
    "axis_index_groups": {"none", *EMPTY, "no values"},  # ignored without `axis_name`
    "activation": {"none"},
    "implementation": {"none"},
    "num_features": {"zero", "int", "index", "int array", *EMPTY, "no values"},
    "state": {"state"},
    "moments": {"moments"},
    "first": {"moments"},
    "second": {"moments"},
    "alpha": {"zero", "float16"},
    "t": {"zero", "int", "index"},
    "domain": {"zero"},
    "batch_norm.x": BATCH,
    "batch_norm_inference.x": BATCH,
    "timestep_batch_norm.x": BATCH,
    "timestep_batch_norm_inference.x": BATCH,
    "batch_renorm.x": BATCH,
    "batch_renorm_inference.x": BATCH,
    "normalize.x": BATCH | {"complex array", "complex vector"},
    "Frozen.x": BATCH | {"complex array", "complex vector"},
    "moments.x": BATCH | EMPTY | {"wrong size", "complex array", "complex vector"},
    "domain_batch_norm_inference.x": {"matrix", "no values"},
    "domain_batch_norm.states": set(),
    "domain_batch_norm_inference.states": set(),
    "timestep_batch_norm.states": set(),
    "timestep_batch_norm_inference.states": set(),
    "eval_blend.x": {"matrix", "no values"},
    "ghost_batch_norm.x": {"matrix", "no values"},
    "domain_batch_norm.scale": VECTOR | {"matrix"},
    "domain_batch_norm.bias": VECTOR | {"matrix"},
    "domain_batch_norm_inference.scale": VECTOR | {"matrix"},
    "domain_batch_norm_inference.bias": VECTOR | {"matrix"},
    "mean": {"int array", "negative array", "nan array"},
    "var": {"int array", "nan array"},  # as a batch that overflowed
    "center": VECTOR - {"none"},
    "slope": VECTOR - {"none"},
    "offset": VECTOR - {"none"},
    "batch_renorm.state": {"renorm state"},
    "batch_renorm_inference.state": {"renorm state"},
    "strip_domain.tree": ANY,  # leaves of another size stay
    "strip_domain.num_domains": SIZE | {"none"},
    "step": NOT_NEGATIVE
    | {"infinite", "wrong size", "matrix", "no values", "int array", "float8"},
    "start": {"zero", "float16"},
    "r_end": NUMBERS,
    "d_end": NUMBERS,
    "renorm_schedule.r_max": NUMBERS,
    "renorm_schedule.d_max": NOT_NEGATIVE,
    "states": {"state"},
    "init_accumulation.states": TREES | {"state", "states", "state of two"},
    "prior_count": NOT_NEGATIVE | {"infinite", "int array"},
    "count": NOT_NEGATIVE | {"infinite", "int array", "none"},
    "accumulated": {"moments"},
    "kernel": {"matrix", "no values", "complex array"},
    "fold.bias": VECTOR - {"int array"},
    "input_axis": {"zero"},
    # Any iterable, as the arrays of a NamedTuple.
    "batches": {
        "matrix",
        "state",
        "state of nan",
        "state of -1",
        "moments",
        "moments of -1",
        "renorm state",
    },
    "recalibrate by scan.batches": {"matrix"},
    "scan": FLAG,
    "recalibrate.scan": {"numpy false"},
    "linen_model.module": {"linen"},
    # Flax looks into it when the model runs.
    "rngs": {
        "none",
        "dict",
        "nested",
        "text",
        "plain state",
        "states",
        "scalar",
        "index",
        "float8",
        "key",
        "keys",
        "deleted",
    },
    "fold_nnx.model": {"nnx"},
    "only": {"none"},
    "to": {"none"},
    "frozen_mask.params": ANY,
    "fold.frozen": set(),
    "dead_below": NOT_NEGATIVE | {"infinite"},
    "rate": NOT_NEGATIVE,
    "target": NOT_NEGATIVE | {"negative", "negative float"},
    "weight_decay_mask.params": ANY,  # names count, not leaves
    "watch": ANY,
    "bias_metadata": {"dict", "nested", "text", "plain state", "states"},
    "scale_metadata": {"dict", "nested", "text", "plain state", "states"},
    "r_max": NUMBERS | {"infinite", "int array"},
    "d_max": NOT_NEGATIVE | {"infinite", "int array"},
    "max_steps": SIZE,
    "num_domains": SIZE,
    "passes": SIZE,
    "tolerance": NOT_NEGATIVE | {"none", "infinite"},
    "names": NAMES | EMPTY,
    "dtype": {"none"},
    "init_state.dtype": set(),
    **dict.fromkeys(
        ("debias", "unbiased", "skip_nonfinite", "use_bias", "use_scale", "ready",
         "use_fast_variance", "force_float32_reductions", "use_running_average",
         "shared_affine", "training", "update_statistics", "frozen"),
        FLAG,
    ),
}  # fmt: skip
for _name in CALLS:  # what an input has to fit, where the defaults above do not
    if _name.startswith("nnx."):
        SENSIBLE |= {f"{_name}.num_features": set(), f"{_name}.axis": set()}
    if _name.startswith(("linen.", "nnx.")):
        SENSIBLE[f"{_name}.x"] = BATCH | {
            "int array", "bool array", "complex array", "complex vector",
        }  # fmt: skip
for _name in ("linen.BatchNorm", "linen.BatchRenorm", "linen.TimestepBatchNorm"):
    SENSIBLE[f"{_name}.x"] = SENSIBLE[f"{_name}.x"] | EMPTY | {"wrong size"}
for _name in ("linen.BatchRenorm", "nnx.BatchRenorm"):
    SENSIBLE[f"{_name}.x"] = SENSIBLE[f"{_name}.x"] - COMPLEX
# Whose first axis lists the examples.
_OF_EXAMPLES = (
    "linen.GhostBatchNorm",
    "nnx.GhostBatchNorm",
    "linen.EvalBlendBatchNorm",
)
SENSIBLE |= {
    **{f"{n}.x": {"matrix", "no values", "complex array"} for n in _OF_EXAMPLES},
    **{f"{n}.DomainBatchNorm.x": {"complex array"} for n in ("linen", "nnx")},
    **{f"{n}.axis": {"zero"} for n in (
        "moments", "linen.BatchNorm", "linen.BatchRenorm", "linen.TimestepBatchNorm"
    )},
    # Which fits is known at evaluation.
    "nnx.EvalBlendBatchNorm.alpha": {
        "zero", "float16", "float8", "wrong size", "matrix", "no values",
    },
}  # fmt: skip
# Of what is compiled slowly, and whose arguments need no values to be checked.
ABSTRACT = (
    "linen.",
    "nnx.",
    "fit_eval_blend",
    "domain_batch_norm",
    "eval_",
    "ghost",
    "batch_norm",
)
VALUED = {k for k in WRONG if "nan" in k or "-1" in k or "negative" in k}


def outcome(name, arguments, kind=None):
    """None for success, else the error."""
    function, _ = CALLS[name]
    try:
        if name.startswith(ABSTRACT) and kind not in VALUED:
            jax.eval_shape(lambda: [function(**arguments), None][1])
        else:
            function(**arguments)
    except Exception as error:
        return error
    return None


def is_ours(error):
    """Whether this is an error of the house, in its style."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    inside = "/jaxbn/" in last
    return inside and isinstance(error, ERRORS) and bool(STYLE.search(str(error)))


@pytest.fixture(autouse=True)
def all_frames():
    """Tracebacks with the frames of JAX, to see who raised an error."""
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", "auto")


def of(table, name, argument):
    return table.get(f"{name}.{argument}", table.get(argument, set()))


def is_expected(name, argument, kind, error):
    allowed, own = of(SENSIBLE, name, argument), of(OWN, name, argument)
    if kind in own or (allowed is ANY and (error is None or is_ours(error))):
        return True
    return error is None if kind in (allowed or ()) else error and is_ours(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_every_wrong_argument_has_a_message(name):
    _, make = CALLS[name]
    assert outcome(name, make()) is None
    unexpected = {}
    # The modules share a base, whose arguments are tried with the ordinary layer.
    shared = BASE.keys() - DIFFERENT if name.endswith(VARIANTS) else set()
    for argument in make().keys() - shared:
        for kind, value in WRONG.items():
            error = outcome(name, {**make(), argument: value}, kind)
            if not is_expected(name, argument, kind, error):
                unexpected[argument, kind] = error
    assert unexpected == {}


@pytest.mark.parametrize(
    "module",
    [jaxbn, deploy, optim, variants],
    ids=lambda module: module.__name__,
)
def test_all_functions_are_there(module):
    own = {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_")
        if value.__module__.startswith("jaxbn")
        and value.__doc__
        and ">>>" in value.__doc__
    }
    without = {"implementations", "keep_freed_memory"}  # have no arguments
    assert own - CALLS.keys() - without == set()
