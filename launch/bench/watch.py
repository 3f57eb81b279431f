"""Every call of the model's kernels between two events, in place: with the clocks, L2 and neighbours of a real run."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from paddle import Tensor

from sd3par import kernels
from sd3par.launch.bench.clock import Marks, between_us
from sd3par.launch.bench.swap import names, swapped

EVENTS = 24_000  # 15 steps of the largest model
_PRODUCTS = ("linear", "linear_gelu")  # their first two tensors are x: [..., in] and weight: [in, out]


@dataclass(frozen=True)
class Work:
    """What a call does. shape: of what it reads first, in words; flops: of matrix products; bytes: read and written."""

    kernel: str
    shape: str
    flops: int = 0
    bytes: int = 0


def tensors(value: Any) -> list[Tensor]:
    """Returns the tensors in a value, or in lists and tuples of them."""
    if isinstance(value, (list, tuple)):
        return [x for one in value for x in tensors(one)]
    return [value] if isinstance(value, Tensor) else []


def work(kernel: str, given: Any, result: Any) -> Work:
    """Returns what a call did with its arguments; results that are views of what was given move no bytes."""
    read, written = tensors(given), tensors(result)
    shape = _words(read[0])
    flops = 0
    if kernel in _PRODUCTS:
        columns = read[1].shape[-1]
        flops, shape = 2 * read[0].size * columns, f"{shape} x {_words(read[1])}"
    elif kernel == "linear_pair":
        flops = sum(2 * x.size * weight.shape[-1] for x, weight, _ in given[0])
        shape = " + ".join(f"{_words(x)} x {_words(weight)}" for x, weight, _ in given[0])
    elif kernel == "attention":
        rows, _, _, heads, head_dim = read[0].shape
        flops = 4 * rows * heads * sum(x.shape[1] for x in read) ** 2 * head_dim
        shape = " + ".join(_words(x) for x in read)
    elif kernel == "adaln":
        shape = " + ".join(_words(stream.x) for stream in given[0])
    addresses = {x.data_ptr() for x in read}
    made = [x for x in written if x.data_ptr() not in addresses]
    return Work(kernel, shape, flops, sum(_bytes(x) for x in (*read, *made)) if made else 0)


def _words(x: Tensor) -> str:
    return "x".join(map(str, x.shape)) or "1"


def _bytes(x: Tensor) -> int:
    return int(x.size * x.element_size())


class Watch:
    """The calls of several equal steps. Work is looked at in the first step only: that takes the host's time.

    Between two calls lie other operators; their time counts as `others`, before the call that follows.
    """

    def __init__(self) -> None:
        self._marks = Marks()
        self._unused = self._marks.make(EVENTS)  # making one takes longer than recording it
        self._works: list[Work] = []  # of the first step, in order
        self._steps: list[list[Any]] = []  # of each step: begin, then begin and end of each call, then end
        self._inside = True  # of a watched call, or outside of all steps

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it the outermost calls are watched."""
        with swapped({name: self._watched(name, getattr(kernels, name)) for name in names()}):
            yield

    def begin_step(self) -> None:
        """Calls from here on are of a new step."""
        self._steps.append([])
        self._put()
        self._inside = False

    def end_step(self) -> None:
        """Calls from here on are of none."""
        self._put()
        self._inside = True

    def _put(self) -> None:
        mark = self._unused.pop() if self._unused else self._marks.make(1)[0]
        self._marks.record(mark)
        self._steps[-1].append(mark)

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if self._inside:
                return function(*given, **named)
            self._inside = True
            self._put()
            try:
                result = function(*given, **named)
            finally:
                self._inside = False
            self._put()
            if len(self._steps) == 1:
                self._works.append(work(name, [*given, *named.values()], result))
            return result

        return call

    def spans(self) -> list[tuple[Work, float, float]]:
        """Returns the calls of the last step in order: the work, and microseconds from the step's begin and of it."""
        first, *marks = self._steps[-1]
        pairs = zip(self._works, marks[:-1:2], marks[1::2], strict=True)
        return [(each, between_us(first, begin), between_us(begin, end)) for each, begin, end in pairs]

    def times(self, event_us: float, skip: int) -> tuple[list[tuple[Work, int, float]], list[tuple[str, float]], float]:
        """Returns medians over the steps but the first `skip`, with `event_us` taken off each span of events.

        Of each kind of work: it, calls a step, and microseconds a step. Of other operators: before which kernel, and
        microseconds a step. Last the microseconds of a whole step, events included.
        """
        spans = []
        for marks in self._steps[skip:]:
            if len(marks) != 2 * len(self._works) + 2:
                raise RuntimeError(f"a step made {len(marks) // 2 - 1} calls, the first one {len(self._works)}")
            spans.append([max(0.0, between_us(*pair) - event_us) for pair in zip(marks, marks[1:], strict=False)])
        medians = [statistics.median(each) for each in zip(*spans, strict=True)]
        kernels_us: dict[Work, float] = defaultdict(float)
        others_us: dict[str, float] = defaultdict(float)
        for each, us in zip(self._works, medians[1::2], strict=True):
            kernels_us[each] += us
        followers = [*(each.kernel for each in self._works), "the end of the step"]
        for follower, us in zip(followers, medians[::2], strict=True):
            others_us[follower] += us
        counts = Counter(self._works)
        whole = statistics.median(between_us(marks[0], marks[-1]) for marks in self._steps[skip:])
        found = [(each, counts[each], us) for each, us in kernels_us.items()]
        return sorted(found, key=lambda one: -one[2]), sorted(others_us.items(), key=lambda one: -one[1]), whole
