"""SGD as in the papers on residual networks and large batches."""

import optax

import jaxbn.optim
from experiments.common.errors import UserError
from experiments.common.options import check_limits
from experiments.scale import config


def learning_rate(options: config.Optimizer) -> optax.Schedule:
    """The learning rate of each step.

    With the highest rate r = lr * batch_size / lr_batch_size, w steps of warm-up and s
    steps in all,

        rate(t) = r * t / w                                     for t < w
        rate(t) = r * (1 + cos(pi * (t - w) / (s - w))) / 2     after it

    so that the first step of a warm-up leaves the parameters alone, and the rate is
    zero once all steps are done.

    Returns:
        A function of the number of steps done, from 0, to a float32 scalar.

    Raises:
        UserError: if the steps do not fit the warm-up, or a number is out of range.

    References:
        Goyal et al., Accurate, large minibatch SGD: training ImageNet in 1 hour, 2017,
        section 2: linear scaling and warm-up. https://arxiv.org/abs/1706.02677
        Loshchilov and Hutter, SGDR, 2017, equation 5: cosine.
        https://arxiv.org/abs/1608.03983
    """
    _check(options)
    highest = options.lr
    if options.lr_batch_size:
        highest *= options.batch_size / options.lr_batch_size
    # Where the warm-up lasts until the end, nothing is left to fall.
    end = max(options.steps, options.warmup_steps + 1)
    return optax.warmup_cosine_decay_schedule(0.0, highest, options.warmup_steps, end)


def make_optimizer(options: config.Optimizer) -> optax.GradientTransformation:
    """SGD with momentum, and an L2 penalty on everything but scale and bias.

        g = gradient + weight_decay * w,    m = momentum * m + g,    w = w - rate * m

    with Nesterov momentum w = w - rate * (g + momentum * m). The penalty comes before
    the momentum, as in the papers; it is not decoupled.
    """
    return optax.chain(
        optax.add_decayed_weights(
            options.weight_decay, mask=jaxbn.optim.weight_decay_mask
        ),
        optax.sgd(
            learning_rate(options),
            momentum=options.momentum,
            nesterov=options.nesterov,
        ),
    )


def _check(options: config.Optimizer) -> None:
    check_limits(options)
    if options.warmup_steps > options.steps:
        raise UserError(
            f"`--warmup-steps` must be at most {options.steps}, the number of steps, "
            f"got {options.warmup_steps}. Pass fewer, or more `--steps`."
        )
