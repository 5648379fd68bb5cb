"""How long a training is, and how large its batches."""

import math

from e3jax import training


def test_paper_lengths():
    paper = training.paper_config(grey=True)
    assert paper.num_steps(7777) == math.ceil(3 * 7777 * 111 / 128)
    assert paper._replace(operations="RA+IA").num_steps(7777) == math.ceil(3 * 7777 * 88 / 128)
    assert paper._replace(operations="RA").num_steps(7777) == math.ceil(4 * 7777 * 72 / 128)
    assert paper._replace(operations="").num_steps(7777) == math.ceil(250 * 7777 / 128)
    assert training.quick_config().num_steps(10**6) == training.quick_config().steps


def test_a_batch_is_no_larger_than_an_epoch_and_a_power_of_two_then():
    config = training.TrainConfig(operations="", batch_size=128)
    assert [config.batch(n) for n in (500, 128, 80, 70, 40, 2)] == [128, 128, 128, 128, 64, 2]
    assert config._replace(operations="RA").batch(40) == 128
