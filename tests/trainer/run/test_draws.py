"""Random rows that belong to the image and not to the process that draws them."""

import pytest
import torch

from fewstep import noise
from trainer.run import draws
from trainer.run.draws import Draws

DRAWN = {
    "normal_like": lambda rng, rows: rng.normal_like(torch.empty(rows, 3, 4, 4)),
    "uniform": lambda rng, rows: rng.uniform(rows),
    "normal": lambda rng, rows: rng.normal(rows),
    "integers": lambda rng, rows: rng.integers(1000, rows),
}


def several(ranks: int) -> list[Draws]:
    return [Draws(torch.Generator().manual_seed(7), rank, ranks) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("draw", DRAWN.values(), ids=list(DRAWN))
def test_rows_do_not_depend_on_the_number_of_processes(draw, ranks):
    (alone,), shared_out = several(1), several(ranks)
    for _ in range(2):  # and the generators stay in step
        rows = torch.cat([draw(rng, 16 // ranks) for rng in shared_out])
        assert torch.equal(rows, draw(alone, 16))
        assert len({rng.shared_choice(lambda u: (u, u < 0.5)) for rng in (alone, *shared_out)}) == 1
    assert all(torch.equal(rng.generator.get_state(), alone.generator.get_state()) for rng in shared_out)


def test_no_two_processes_draw_the_same_rows():
    first, second = several(2)
    assert not torch.isin(first.normal(100), second.normal(100)).any()


def test_numbers_have_the_promised_law():
    (rng,) = several(1)
    assert rng.normal_like(torch.empty(2, 3, 5, 5)).shape == (2, 3, 5, 5)
    uniform, integers, normal = rng.uniform(20_000), rng.integers(5, 20_000), rng.normal(20_000)
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.01
    assert integers.unique().tolist() == [0, 1, 2, 3, 4]
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03
    assert 0 <= rng.shared_uniform() < 1


def test_a_process_makes_its_own_rows_only(monkeypatch):
    """Of 64 processes each makes a 64th."""
    made = []
    normals = noise.normals

    def counted(*arguments):
        made.append(normals(*arguments))
        return made[-1]

    monkeypatch.setattr(noise, "normals", counted)
    rng = Draws(torch.Generator().manual_seed(7), 63, 64)
    x = rng.normal_like(torch.empty(4, 3, 32, 32))
    assert sum(part.size for part in made) == x.numel()


def test_a_gpu_makes_the_same_numbers_in_pieces(monkeypatch):
    keys, rows = torch.full((7,), -(2**62) - 3), torch.arange(7)
    monkeypatch.setattr(draws, "_PIECE", 100)
    expected = draws.keyed_normals(keys, rows, (3, 4, 4))
    torch.testing.assert_close(draws.normals_in_pieces(keys, rows, (3, 4, 4)), expected, rtol=0, atol=1e-6)


def test_draws_of_one_generator_differ():
    (rng,) = several(1)
    assert not torch.isin(rng.normal(100), rng.normal(100)).any()
