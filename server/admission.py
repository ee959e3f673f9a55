"""How much the server takes on: a bound in images, and an honest answer to "when should I come back?"."""

import math
from http import HTTPStatus

from server.errors import ApiError


class Admission:
    """Counts images accepted and not yet answered, and the network calls they still stand for.

    capacity: slots that share one network call. limit: images accepted at once.
    """

    def __init__(self, capacity: int, limit: int) -> None:
        self.capacity = capacity
        self.limit = limit
        self.images = 0
        self.rows = 0  # network rows the accepted images need in all: images x steps

    def enter(self, images: int, steps: int, tick_s: float) -> None:
        """ApiError 429 with Retry-After when the images do not fit. tick_s: a tick with all slots full."""
        excess = self.images + images - self.limit
        if excess > 0:
            seconds = self.retry_after_s(excess, tick_s)
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"the queue is full ({self.images} of {self.limit} images); try again in {seconds} s",
                code="queue_full",
                headers={"Retry-After": str(seconds)},
            )
        self.images += images
        self.rows += images * steps

    def leave(self, images: int, steps: int) -> None:
        """The request was answered, failed or left."""
        self.images -= images
        self.rows -= images * steps

    def retry_after_s(self, excess: int, tick_s: float) -> int:
        """Whole seconds until `excess` images will have been answered, were all slots busy; at least 1."""
        rows = self.rows / self.images * excess
        return max(1, math.ceil(rows / self.capacity * tick_s))
