"""The pages of examples show what they say."""

import chex
import numpy as np

from experiments.examples import crossq, fine_tune, gan, sam


def test_sam_counts_each_batch_once():
    losses, batches = sam.main(steps=30)
    assert batches == 30 and losses[-1] < 0.5 * losses[0]


def test_the_critic_sees_both_halves_and_learns():
    errors, model = crossq.main(steps=200)
    assert errors[-1] < 0.3 * errors[0]
    # Of 1 now and of 0.5 later, half of each.
    np.testing.assert_allclose(model.layers[0].mean[0], 0.75, atol=0.1)


def test_fine_tuning_leaves_frozen_layers_alone():
    (first, last), before, after = fine_tune.main(steps=100)
    assert last < 0.7 * first
    chex.assert_trees_all_equal(before, after)


def test_each_class_is_generated_around_its_corner():
    np.testing.assert_allclose(gan.main(steps=600), gan.CORNERS, atol=0.7)
