"""A second stream of a GPU, on which copies run beside what Paddle's stream has to do."""

from __future__ import annotations

from paddle import Tensor

from sd3par import cuda_driver, device


class Side:
    """A stream for copies beside the other work of the current device, an NVIDIA GPU; a recording takes it in.

    handle: CUDA's.
    """

    def __init__(self) -> None:
        index = device.current_index()
        self._stream = cuda_driver.Stream(index)
        self._begin, self._end = (cuda_driver.Event(index, timed=False) for _ in range(2))
        self.handle = self._stream.handle

    def follow(self) -> None:
        """Lets what it is given from now on wait for all that Paddle's stream has been given."""
        self._begin.record(device.stream_handle())
        self._begin.hold(self.handle)

    def copy(self, x: Tensor, address: int) -> None:
        """Copies x: [...], without gaps, to an address in this device's memory or mapped from another's."""
        cuda_driver.copy(address, x.data_ptr(), x.size * x.element_size(), self.handle)

    def join(self) -> None:
        """Lets what Paddle's stream is given from now on wait for all that this one has been given."""
        self._end.record(self.handle)
        self._end.hold(device.stream_handle())
