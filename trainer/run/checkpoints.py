"""What a run writes of itself: a checkpoint of weights and state, snapshots that are kept, and stored averages."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from trainer.run.clock import Clock
from trainer.run.distributed import rank
from trainer.run.ema import STORED, Averages
from trainer.run.state import Parts, settle_state, stage_state

Write = Callable[[nn.Module, Clock, Path], None]  # the averaged network, how far the run is -> files in a folder


@dataclass(frozen=True)
class Checkpoints:
    """Of the run in `out`. The first process writes; of networks that are divided, every process writes its part."""

    out: Path
    parts: Parts
    averages: Averages
    width: float  # of the average that is served (trainer.run.ema)
    facts: dict[str, Any]  # JSON-able, stored with the state beside the clock
    save: Write  # the weights and their card
    draw: Write | None  # then a sample sheet
    divided: bool

    def write(self, clock: Clock) -> None:
        """Replace the checkpoint: first the state to a second file, then the weights, with which it takes effect."""
        if not self._takes_part:
            return
        average = self.averages.of_width(self.width, self.out, clock.images)
        stage_state(self.out, self.parts, {**asdict(clock), **self.facts})
        if rank() > 0:
            return
        self.save(average, clock, self.out)
        settle_state(self.out)
        if self.draw:
            self.draw(average, clock, self.out)

    def keep(self, clock: Clock) -> None:
        """Write the weights to a folder of their own, in out/snapshots."""
        if not self._takes_part:
            return
        average = self.averages.of_width(self.width, self.out, clock.images)
        if rank() == 0:
            folder = self.out / "snapshots" / f"{clock.images:09d}"
            self.save(average, clock, folder)
            if self.draw:
                self.draw(average, clock, folder)

    def store_averages(self, clock: Clock, batch: int) -> None:
        """After an update of `batch` images: store the averages if it is time, STORED times in a run."""
        earlier = min((clock.images - batch) / clock.planned, 1.0)
        if int(STORED * clock.progress) > int(STORED * earlier) and self._takes_part:
            self.averages.store(self.out, clock.images)

    @property
    def _takes_part(self) -> bool:
        return rank() == 0 or self.divided
