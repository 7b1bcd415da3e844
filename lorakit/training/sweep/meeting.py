"""Members of a sweep that meet at the denoiser: each trains in a thread of its own, one at a time.

A member's thread runs the training of a single run, unchanged. It stops at two places: when it calls its
denoiser, and after the backward pass of its loss. When all members have stopped, the calls that share a shape
are computed in one forward pass, and later in one backward pass. Only one thread runs at any time, in the
order of the members, so that threads decide nothing.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lorakit.training.step import TrainingStep
from lorakit.training.sweep.joint_network import Call, JointNetwork, JointPass


class Participant:
    """A member's training, in a thread that runs until it stops at the meeting or ends."""

    def __init__(self, number: int, step: TrainingStep, work: Callable[[], None]) -> None:
        self.number, self.step, self.work = number, step, work
        self.call: Call | None = None
        self.waits_for_backward = False
        self.error: BaseException | None = None
        self.has_ended = False
        self._failure: BaseException | None = None
        self._goes, self._stops = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=f"member {number}", daemon=True)

    def start(self) -> None:
        """Start the thread, which waits."""
        self._thread.start()

    def go_on(self, failure: BaseException | None = None) -> None:
        """Let the thread run to its next stop, where it raises `failure` first if there is one."""
        self._failure, self.call, self.waits_for_backward = failure, None, False
        self._goes.release()
        self._stops.acquire()

    def _run(self) -> None:
        self._goes.acquire()
        try:
            self.work()
        except BaseException as error:  # reported in the thread of the sweep
            self.error = error
        self.has_ended = True
        self._stops.release()

    def stop(self) -> None:
        """Wait, in the member's own thread, until the meeting goes on."""
        self._stops.release()
        self._goes.acquire()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def attend(self, network: nn.Module) -> None:
        """Let the member's calls of its denoiser, and the end of its backward passes, stop at the meeting."""
        loss = self.step.loss
        loss.network = functools.partial(loss.family.predict, MeetingDenoiser(network, self))
        add_gradients = self.step.parameters.add_gradients

        def add_gradients_of_meeting() -> None:
            if self.pass_is_open:
                self.waits_for_backward = True
                self.stop()
            add_gradients()

        self.step.parameters.add_gradients = add_gradients_of_meeting  # type: ignore[method-assign]

    pass_is_open = False
    """True from the output of a joined call until its backward pass."""


class MeetingDenoiser:
    """A member's denoiser: calls with gradient are computed at the meeting, others by its own network."""

    def __init__(self, network: nn.Module, participant: Participant) -> None:
        self._network, self._participant = network, participant

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._network(*args, **kwargs)
        participant = self._participant
        call = Call(participant.number, args, kwargs, is_first_step=participant.step.state.step == 0)
        participant.call = call
        participant.stop()
        return call.output


class Meeting:
    """The participants of a sweep, and the network that computes their calls."""

    def __init__(self, network: JointNetwork, participants: Sequence[Participant]) -> None:
        self.network, self.participants = network, list(participants)
        self.num_joined, self.num_calls = 0, 0
        """Forward passes that were computed, and calls that they served."""

    def run(self) -> Iterator[None]:
        """Run all participants to their end; yields after each forward and backward pass."""
        for participant in self.participants:
            participant.start()
        for participant in self.participants:
            participant.go_on()
        while calling := [one for one in self._present() if one.call is not None]:
            self._compute(self._choose(calling))
            yield

    def _present(self) -> list[Participant]:
        return [one for one in self.participants if not one.has_ended]

    def _choose(self, calling: Sequence[Participant]) -> list[Participant]:
        """Return the participants of the next pass: of the earliest step and, there, the smallest shape."""

        def order(one: Participant) -> tuple[int, int, tuple[tuple[int, ...], ...]]:
            assert one.call is not None
            return one.step.state.step, one.call.leaves[0].numel() // one.call.num_images, one.call.shape

        first = min(calling, key=lambda one: (*order(one), one.number))
        assert first.call is not None
        step = first.step.state.step
        return [
            one
            for one in calling
            if one.call is not None and one.step.state.step == step and first.call.can_join(one.call)
        ]

    def _compute(self, group: Sequence[Participant]) -> None:
        """Compute the calls of a group, let each go on to its backward pass, and compute that too."""
        calls = [one.call for one in group if one.call is not None]
        try:
            joint = self.network.forward(calls)
        except Exception as error:  # out of memory, for example: each member handles it as in a single run
            for one in group:
                one.go_on(error)
            return
        self.num_joined, self.num_calls = self.num_joined + 1, self.num_calls + len(calls)
        for one in group:
            one.pass_is_open = True
            one.go_on()
        self._compute_backward(joint, group)

    def _compute_backward(self, joint: JointPass, group: Sequence[Participant]) -> None:
        waiting = [one for one in group if not one.has_ended and one.waits_for_backward]
        error: Exception | None = None
        try:
            if waiting:
                joint.backward()
        except Exception as problem:
            error = problem
        for one in group:
            one.pass_is_open = False
        for one in waiting:
            one.go_on(error)
