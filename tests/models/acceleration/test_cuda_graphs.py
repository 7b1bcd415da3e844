"""Passes that are recorded and replayed: on a CPU by a recorder that runs the recorded work again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lorakit.models.acceleration import host_waits
from lorakit.models.acceleration.cuda_graphs import GraphedNetwork
from lorakit.training.flat_parameters import FlatParameters
from tests.models.acceleration.tiny_networks import Adapted, difference


class Repeater:
    """A recorder for devices without graphs: replaying is running the work again, on the same tensors."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()

        with torch.random.fork_rng(devices=[]):
            work()  # a capture runs the code too, without any effect on the device
        return replay


class Graphed:
    """An adapted network whose passes may be recorded, with its buffer of gradients."""

    def __init__(self, name: str, **settings: int) -> None:
        self.adapted, self.recorder = Adapted(name), Repeater()
        self.refused: list[str] = []
        self.parameters = FlatParameters(self.adapted.parameters)
        self.network = GraphedNetwork(
            self.adapted.predict,
            [parameter for _, parameter in self.parameters.named],
            self.parameters.add_gradients,
            self.parameters.mark_active,
            self.refused.append,
            record=self.recorder,
            **settings,
        )

    def step(self, numbers: list[int]) -> dict[str, torch.Tensor]:
        """The gradients of a step over some of the inputs."""
        for number in numbers:
            self.network(*self.adapted.inputs[number]).square().mean().backward()
            self.parameters.add_gradients()
        gradients = {key: value.clone() for key, value in self.parameters.gradient_views()}
        self.parameters.zero_gradients()
        return gradients


@pytest.mark.parametrize("name", ["sd15", "flux1-dev", "sd3"])
def test_replayed_steps_have_the_gradients_of_plain_ones(name):
    """Bit for bit, with accumulated passes, and although each replay reads other inputs."""
    graphed = Graphed(name)
    expected = [graphed.step([0, 1]), graphed.step([0])]  # two of these passes are the first of the shape
    assert graphed.recorder.recorded == 2  # forward and backward, in the third pass
    graphed.parameters.zero_gradients()
    steps = [graphed.step([0, 1]), graphed.step([0])]
    assert graphed.recorder.replayed >= 6
    for before, after in zip(expected, steps, strict=True):
        assert difference(before, after) == 0
    assert not graphed.refused


def test_a_second_pass_before_the_backward_pass_runs_without_the_graph():
    graphed = Graphed("sd3")
    for _ in range(3):
        graphed.step([0])
    replays, inputs = graphed.recorder.replayed, graphed.adapted.inputs
    first = graphed.network(*inputs[0])
    kept = first.clone()
    second = graphed.network(*inputs[1])
    assert graphed.recorder.replayed == replays + 1
    assert torch.equal(first, kept), "the second pass does not overwrite the first"
    (first.square().mean() + second.square().mean()).backward()
    graphed.parameters.add_gradients()
    both = {key: value.clone() for key, value in graphed.parameters.gradient_views()}
    graphed.parameters.zero_gradients()
    assert difference(both, graphed.step([0, 1])) <= 1e-6
    with torch.no_grad():
        graphed.network(*inputs[0])
    assert not graphed.network.pending


def test_a_pass_that_waits_for_the_device_is_not_recorded_and_named():
    """Grouping rows by the lengths of their captions needs these lengths on the host."""
    graphed = Graphed("cogview4")
    for _ in range(4):
        graphed.step([0])
    assert graphed.recorder.recorded == 0
    (reason,) = graphed.refused
    assert "unpadded.py:" in reason
    assert "waits for the device" in reason


def test_more_shapes_than_allowed_run_without_a_graph():
    graphed = Graphed("sd3", max_shapes=1)
    small = graphed.adapted.inputs[1][0][..., ::2]
    for _ in range(4):
        graphed.step([0])
    graphed.adapted.inputs[1] = (small, *graphed.adapted.inputs[1][1:])
    for _ in range(4):
        graphed.step([1])
    assert graphed.network.num_graphs == 1
    assert graphed.refused == ["there are more than 1 shapes"]


@pytest.mark.parametrize(
    "name",
    ["sd15", "sdxl", "sd3", "flux1-dev", "flux2-klein", "qwen-image", "pixart-sigma", "lumina2", "wan"],
)
def test_the_recorded_region_never_waits_for_the_device(name):
    """Forward and backward passes of these families contain no operation that reads a tensor on the host."""
    adapted = Adapted(name)
    assert host_waits.find_host_waits(adapted.gradients) == []


def test_reading_operations_are_noticed_with_their_place():
    values = torch.arange(4.0)
    cases = {
        "_local_scalar_dense": lambda: float(values.sum()),
        "nonzero": lambda: values.nonzero(),
        "index": lambda: values[values > 1],
        "_unique2": lambda: values.unique(),
    }
    for operation, work in cases.items():
        waits = host_waits.find_host_waits(work)
        assert any(wait.startswith(f"{operation} in ") for wait in waits), (operation, waits)
        assert all("test_cuda_graphs.py:" in wait for wait in waits)
    assert host_waits.find_host_waits(lambda: values[torch.tensor([1, 2])] * 2) == []
