"""What each factor changes, and the training that is scored after every epoch."""

import ablations
import jax
import numpy as np
import pytest
from sweep import methods
from sweep.plan import Protocol, Run
from tiny import Tiny

from e3jax import devices, training
from e3jax.methods import METHODS
from e3jax.training.checkpoint import TrainCheckpoint
from e3jax.training.e3outlier import E3OUTLIER

QUICK, PAPER, NARROW = Protocol("quick", 500), Protocol("paper", None), Protocol("narrow", None)


# --- Plans -----------------------------------------------------------------------------------


def test_every_factor_changes_itself_alone():
    [standard] = ablations.variants(QUICK, ["scores"])
    assert standard == (QUICK, ("e3outlier",), (0.1,))
    changed = {
        factor: [v for v in ablations.variants(QUICK, [factor]) if v != standard]
        for factor in ablations.FACTORS
    }
    assert [len(variants) for variants in changed.values()] == [1, 4, 3, 0, 1]
    for factor, variants in changed.items():
        for protocol, names, ratios in variants:
            assert (protocol.network != "") == (factor == "networks")
            assert (protocol.operations != "RA+IA+PR") == (factor == "operations")
            assert (ratios != (0.1,)) == (factor == "ratios")
            assert ("e3outlier" not in names) == (factor == "epochs")


@pytest.mark.parametrize("base", [QUICK, PAPER, NARROW])
@pytest.mark.parametrize(("names", "k", "epochs"), [("RA", 72, 4), ("RA+IA", 88, 3)])
def test_operations_are_compared_at_equal_lengths_and_at_the_papers(base, names, k, epochs):
    lengths = {
        protocol.name: protocol.config(E3OUTLIER, grey=True).num_steps(500)
        for protocol, *_ in ablations.variants(base, ["operations"])
        if protocol.operations == names
    }
    whole = base.config(E3OUTLIER, grey=True).num_steps(500)
    assert list(lengths) == [base.name, f"{base.name}-{OTHER[base.base]}"]
    own, other = lengths.values()
    equal, by_epochs = (own, other) if base is QUICK else (other, own)
    assert abs(equal - whole) <= 1
    assert by_epochs == pytest.approx(whole * epochs * k / (3 * 111), abs=1)


OTHER = {"quick": "by-epochs", "paper": "equal-steps", "narrow": "equal-steps"}


def test_the_narrow_protocol_has_the_network_of_quick_and_the_length_of_the_paper():
    quick, paper, narrow = (p.config(E3OUTLIER, grey=False) for p in (QUICK, PAPER, NARROW))
    assert narrow.num_steps(6666) == paper.num_steps(6666) == 17_343
    assert narrow == quick._replace(steps=None)
    cae = METHODS["cae"]
    assert NARROW.config(cae, grey=False) == QUICK.config(cae, grey=False)


def test_a_rate_that_falls_to_zero_is_made_constant_for_ten_epochs():
    entry = methods.METHODS["e3outlier-epoch03"]
    assert entry.name == "e3outlier-epoch10" and len(entry.scores) == 10
    described = entry.describe(QUICK, True)
    config = training.TrainConfig(**described["config"])
    assert (config.schedule, config.learning_rate, config.steps) == ("constant", 1e-3, None)
    assert (config.epochs, described["protocol"]) == (10, "quick-10epochs")
    config = training.TrainConfig(**entry.describe(PAPER, True)["config"])
    assert config == training.paper_config(grey=True)._replace(epochs=10)


# --- A training that is scored on the way ----------------------------------------------------


class Interrupted(Exception):
    pass


class Stages:
    """Notes the stages of a run, and interrupts it after so many."""

    def __init__(self, most: int = 1000):
        self.seen, self.most = [], most

    def __call__(self, stage, done, total):
        self.seen.append(stage)
        if len(self.seen) == self.most:
            raise Interrupted


def train(images, after, stages=None, state=None, **changed):
    """Three epochs of seven steps, each of which is then scored, or only the last."""
    config = training.TrainConfig(Tiny, "PR", "adam", batch_size=32, epochs=3)
    what = {"dataset": "mnist", "source": "", "method": "e3outlier-epoch10", "inlier_class": 4}
    what |= {"ratio": 0.1, "data_seed": 0, "train_seed": 0, "max_images": None, "protocol": ""}
    config = config._replace(**changed)._asdict()
    run = Run(**what, network="", operations="", config=config, constants={})
    options, mesh = {"on_progress": stages or Stages()}, devices.device_mesh(jax.devices()[:1])
    if state is None:
        return methods.train(run, images, mesh, options, after)
    options["checkpoint"] = TrainCheckpoint(state, save_seconds=0)
    return methods.train(run, images, mesh, options, after)


@pytest.fixture(scope="module")
def few(digits):
    return digits[:10]


@pytest.fixture(scope="module")
def whole(few):
    return train(few, (1, 2, 3))


@pytest.mark.parametrize("epoch", [1, 3])
def test_scores_on_the_way_are_those_of_a_training_of_that_length(few, whole, epoch):
    on_the_way = whole[f"e3outlier-epoch0{epoch}"]
    alone = train(few, (None,), epochs=epoch)["e3outlier"]
    np.testing.assert_array_equal(on_the_way["scores"], alone["scores"])
    assert on_the_way["pretext_accuracy"] == pytest.approx(alone["pretext_accuracy"])
    assert on_the_way["steps"] == alone["steps"] == -(-epoch * 10 * 23 // 32)


def test_interrupted_on_the_way_it_continues(few, whole, tmp_path):
    """Within each epoch, and while each is scored: no step and no score is done twice or lost."""
    stages = Stages()
    train(few, (1, 2, 3), stages)
    for most in range(1, len(stages.seen)):
        state = tmp_path / str(most)
        with pytest.raises(Interrupted):
            train(few, (1, 2, 3), Stages(most), state)
        again = Stages()
        outcome = train(few, (1, 2, 3), again, state)
        for name, expected in whole.items():
            np.testing.assert_array_equal(outcome[name]["scores"], expected["scores"])
            for column in ("steps", "pretext_accuracy"):
                assert outcome[name][column] == expected[column]
        # Of an interrupted call for progress the work is done, but it may not have been kept.
        assert again.seen.count("scoring") >= 3 - stages.seen[:most].count("scoring")
        assert len(again.seen) <= len(stages.seen) - most + 2
