"""The order of training depends only on seed and epoch."""

import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from falcon3_audio.training.data import sampler as module
from falcon3_audio.training.data.sampler import MixtureSampler


def order(sizes, weights, seed=0, epoch=0):
    sampler = MixtureSampler(sizes, weights, seed)
    sampler.set_epoch(epoch)
    indices = list(sampler)
    assert len(sampler) == len(indices)
    return indices


def test_every_example_once_an_epoch():
    for epoch in range(3):
        indices = order([5, 300, 1], [1, 1, 1], epoch=epoch)
        assert sorted(indices) == list(range(306))
        assert indices != sorted(indices)


def test_seeds_and_epochs_differ_and_repeat():
    orders = {tuple(order([50, 20], [1, 1], seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    sampler = MixtureSampler([50, 20], [1, 1], seed=3)
    sampler.set_epoch(4)
    first = list(sampler)
    assert list(sampler) == first == order([50, 20], [1, 1], 3, 4)
    # Two sets of the same size have different orders.
    mixed = order([40, 40], [1, 1])
    assert [index for index in mixed if index < 40] != [index - 40 for index in mixed if index >= 40]


def test_another_process_has_the_same_order():
    """Only the arguments count: not the interpreter's hash seed, not the global generators."""
    code = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("sampler", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
torch.manual_seed(99)
sampler = module.MixtureSampler([30, 12], [1, 0.5], seed=7)
sampler.set_epoch(2)
print(list(sampler))
"""
    command = [sys.executable, "-c", code, str(Path(module.__file__))]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(order([30, 12], [1, 0.5], seed=7, epoch=2))


def test_half_weights_see_the_other_half_in_the_next_epoch():
    halves = [[index for index in order([10, 20], [1, 0.5], epoch=epoch) if index >= 10] for epoch in range(4)]
    assert [len(half) for half in halves] == [10] * 4
    assert set(halves[0]) | set(halves[1]) == set(halves[2]) | set(halves[3]) == set(range(10, 30))
    assert set(halves[0]) != set(halves[2])  # every pass is shuffled again


def test_weights_that_do_not_divide_the_set_lose_nothing():
    """0.3 of 10 rows: ten epochs are three whole passes."""
    seen = Counter(index for epoch in range(10) for index in order([10], [0.3], epoch=epoch))
    assert seen == dict.fromkeys(range(10), 3)


def test_weights_above_one_repeat():
    indices = order([10, 5], [1, 2])
    counts = Counter(indices)
    assert all(counts[index] == (1 if index < 10 else 2) for index in range(15))
    assert Counter(order([4], [2.5])).most_common(1)[0][1] == 3


def test_repeats_have_the_numbers_of_their_passes():
    """Each time a row comes, over all epochs, it has another one; workers get it too."""
    sampler = MixtureSampler([10, 4], [1, 2.5], clips=[np.full(5, 2), np.full(2, 2)], questions_per_row=None)
    turns = {index: [] for index in range(14)}
    for epoch in range(4):
        sampler.set_epoch(epoch)
        for place in pickle.loads(pickle.dumps(list(sampler))):
            turns[place].append(place.turn)
    assert all(sorted(turns[index]) == list(range(4)) for index in range(10))
    assert all(sorted(turns[index]) == list(range(10)) for index in range(10, 14))


def test_sets_are_spread_over_the_epoch():
    indices = order([1000, 1000], [1, 1])
    assert 400 < sum(index < 1000 for index in indices[:1000]) < 600
    # Their places change every epoch.
    places = [tuple(index < 1000 for index in order([1000, 1000], [1, 1], epoch=epoch)) for epoch in range(4)]
    assert len(set(places)) == 4


def test_a_set_that_an_epoch_would_leave_out_is_an_error():
    with pytest.raises(ValueError, match="Training set 1 has 3 examples and the weight 0.1, .* Raise the weight"):
        MixtureSampler([10, 3], [1, 0.1])
