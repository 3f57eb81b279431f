"""What ranks of one mesh owe each other between requests: the same calls, one watch over all models, and no wait."""

from __future__ import annotations

import json
import signal
from typing import Any

import paddle
import pytest
from paddle import Tensor

from sd3par.callback import stopped
from sd3par.config import GenerationRequest
from sd3par.door import Admitted
from sd3par.errors import ConfigError
from sd3par.inputs import Inputs, Start
from sd3par.mesh import Axis, Mesh
from sd3par.scheduler import SchedulerConfig, schedule
from sd3par.watchdog import EXIT_CODE
from tests import ranks


def result(printed: str) -> Any:
    (line,) = [line for line in printed.splitlines() if line.startswith("RESULT")]
    return json.loads(line.split(maxsplit=1)[1])


@pytest.mark.slow
def test_ranks_that_were_given_different_requests_all_refuse() -> None:
    """Else they would wait for each other for ever, or draw what none of them was asked for."""
    for found in map(result, ranks.run(2, "tests.door_worker", "differences")):
        assert found.pop("nothing") == "works"
        assert len(found) == 6 and set(found.values()) == {"request"}, found


@pytest.mark.slow
def test_several_models_have_one_watch() -> None:
    for found in map(result, ranks.run(2, "tests.door_worker", "loading")):
        assert found[0][:2] == [1, 1] and found[0] == found[1] == found[2]


@pytest.mark.slow
@pytest.mark.parametrize("others", ["work", "wait"])
def test_a_rank_that_failed_alone_waits_for_nobody(others: str) -> None:
    """Its caller has caught the error, and the other rank is gone: from its own work, or where it waits for all."""
    first, second = ranks.start(2, "tests.door_worker", f"failure, others {others}")
    said = result(first.communicate(timeout=60)[0])
    assert said[0] == "KeyError: 'a mistake'"
    assert said[1] == said[2] == "RankFailure: rank 0 failed before, which ended the mesh: KeyError: 'a mistake'"
    assert "rank 0: KeyError: 'a mistake'" in second.communicate(timeout=60)[0]
    assert (first.returncode, second.returncode) == (0, EXIT_CODE)


@pytest.mark.slow
def test_what_all_ranks_raise_alike_ends_a_request_and_not_the_mesh() -> None:
    for found in map(result, ranks.run(2, "tests.door_worker", "alike")):
        assert found["not finite"] == found["not finite again"]
        assert found["not finite"].startswith("Sd3parError: a picture holds values that are not finite")
        assert found["raises"] == "KeyError: 'a mistake'"
        assert found["second step"] == "IndexError: list index out of range"
        assert found["result"].startswith("ConfigError: callback_on_step_end: got int")
        assert found["some"].startswith("ConfigError: callback_on_step_end: got latents of some ranks only")
        assert found["then"] == "the same"


@pytest.mark.slow
def test_ranks_that_raise_other_errors_end_the_mesh() -> None:
    """Nobody knows of two errors that none waits for the other."""
    played = ranks.start(2, "tests.door_worker", "unlike")
    printed = [rank.communicate(timeout=60)[0] for rank in played]
    for rank, (process, text) in enumerate(zip(played, printed, strict=True)):
        if process.returncode == EXIT_CODE:  # the other was the first to tell
            assert f"ValueError: rank {1 - rank}" in text
        else:
            first, second = result(text)
            assert (process.returncode, first) == (0, f"ValueError: rank {rank}")
            assert second.startswith(f"RankFailure: rank {rank} failed before")


@pytest.mark.slow
def test_a_rank_that_dies_between_requests_is_named() -> None:
    first, second = ranks.start(2, "tests.door_worker", "death")
    printed = first.communicate(timeout=60)[0]
    assert f"rank 1 (pid {second.pid}) " in printed and "Traceback" not in printed
    assert (first.returncode, second.wait(60)) == (EXIT_CODE, -signal.SIGKILL)


@pytest.mark.parametrize(("mine", "other", "stops"), [((0, 0), 0, False), ((1, 0), 0, True), ((0, 0), 1, True),
                                                      ((0, 1), 2, False), ((0, 1), 3, True)])  # fmt: skip
def test_callbacks_stop_together(mine: tuple[int, int], other: int, stops: bool) -> None:
    assert stopped(Two(other), *map(bool, mine)) is stops


@pytest.mark.parametrize(("changed", "other"), [(True, 0), (False, 2), (True, 1), (False, 3)])
def test_latents_that_only_some_callbacks_change_are_refused(changed: bool, other: int) -> None:
    """Each rank would go on with its own: a picture that is of none, and on mp another on each rank."""
    with pytest.raises(ConfigError, match="^callback_on_step_end: got latents of some ranks only; allowed: the callb"):
        stopped(Two(other), False, changed)


class Two(Mesh):
    """A mesh of two whose other rank says a number."""

    def __init__(self, other: int) -> None:
        super().__init__(world=Axis(2, 0))
        object.__setattr__(self, "other", other)

    def all_gather(self, axis: Axis, x: Tensor) -> Tensor:
        return paddle.stack([x, paddle.full_like(x, self.other)])


def footprint(inputs: Inputs = Inputs(), **options: Any) -> object:
    """Returns that of a request for two pictures."""
    request = GenerationRequest(**({"prompt": ("a", "a")} | options))
    plan = schedule(SchedulerConfig(), request.num_inference_steps, inputs.strength(request), inputs.sigmas)
    return Admitted(request, inputs, Start(), (2, 16, 8, 8), plan, "np", None).footprint


def test_what_takes_more_memory_is_another_footprint() -> None:
    same = [dict(), dict(seed=5), dict(guidance_scale=3.0), dict(prompt=("b", "b")), dict(negative_prompt=("x",)),
            dict(prompt_3=("c",)), dict(guidance_scale=1.0, negative_prompt=("x", "y"))]  # fmt: skip
    found = [footprint(**options) for options in same]
    assert len(set(found[:-1])) == 1
    assert found[-1] == footprint(guidance_scale=1.0) != found[0]
    more = [dict(prompt=("a", "b")), dict(prompt_3=("c", "d")), dict(), dict(num_inference_steps=4),
            dict(max_sequence_length=77)]  # fmt: skip
    assert len({footprint(**options) for options in more}) == len(more)
    assert footprint(negative_prompt=("x", "y")) != footprint()
    assert footprint(prompt=("a", "b"), negative_prompt=("a", "b")) != footprint(
        prompt=("a", "b"), negative_prompt=("c", "d")
    )
    assert footprint(Inputs(sigmas=[1.0, 0.5])) != footprint(Inputs(sigmas=[1.0, 0.5, 0.2]))
