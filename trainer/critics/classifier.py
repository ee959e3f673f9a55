"""A classifier of noised images that takes the noise level as an input. `trainer.critics.on_classifiers` uses its
features.

A diffusion teacher separates classes only as far as denoising needs it. Features of a network trained to classify at a
noise level show the errors in a class that a student makes at that level.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional

from fewstep.card import CheckpointError, write_atomically
from fewstep.outputs import CLASSIFIER_FILE
from fewstep.ranges import COUNT, POSITIVE, SHARE, Range, check_ranges
from trainer.levels.conditioning import LEVEL_FEATURES, level_features
from trainer.run.compute import Compute, wrap_for_compute
from trainer.run.distributed import replicate
from trainer.run.draws import Draws
from trainer.run.older import current_tensor_name
from trainer.run.optimizer import adam, descend
from trainer.settings import AdamConfig

FORMAT = 1
PATCH = 2  # a patch of pixels is one position of the first map
SMALLEST = 4  # side of the last map


@dataclass(frozen=True)
class ClassifierConfig:
    """The network and its training."""

    resolution: int
    channels: int
    classes: int
    sigma_data: float
    width: int = 64  # of the first map; the widest has three times as many channels
    features: int = 128
    sigma_min: float = 0.03  # levels are drawn log-uniformly
    sigma_max: float = 1.2
    shift: int = 2  # images are shifted cyclically by up to this many pixels
    smoothing: float = 0.1  # of the labels
    dropout: float = 0.3

    def __post_init__(self) -> None:
        check_ranges(self, resolution=COUNT, channels=COUNT, classes=COUNT, sigma_max=POSITIVE)
        check_ranges(self, sigma_data=POSITIVE, sigma_min=POSITIVE, smoothing=SHARE, dropout=Range(0, 0.999))
        check_ranges(self, width=Range(8, whole=True), features=COUNT, shift=Range(0, whole=True))


class NoisyClassifier(nn.Module):
    """Images [B, C, H, W] noised to sigma [B] -> logits [B, classes]."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        side, cin, width = config.resolution // PATCH, config.width, config.width
        self.level_embedding = nn.Sequential(nn.Linear(LEVEL_FEATURES, 64), nn.SiLU())
        self.stem = nn.Conv2d(config.channels * PATCH**2, config.width, 3, padding=1)
        blocks: list[HalvingBlock] = []
        while side > SMALLEST:
            width = min(width + config.width, 3 * config.width)
            blocks.append(HalvingBlock(cin, width))
            side, cin = (side + 1) // 2, width
        self.blocks = nn.ModuleList(blocks)
        self.level_embedding.requires_grad_(bool(blocks))  # 8x8: no block uses it, and DDP rejects unused parameters
        # Channels of what `features` returns.
        self.feature_widths = (*(block.second.out_channels for block in blocks), config.features)
        self.last_map = (cin, side, side)
        self.norm = nn.GroupNorm(8, cin)
        self.dense = nn.Linear(cin * side**2, config.features)
        self.out = nn.Linear(config.features, config.classes)

    def forward(self, x: Tensor, sigma: Tensor, dropout: Tensor | None = None) -> Tensor:
        return self.out(functional.leaky_relu(self.features(x, sigma, dropout)[-1].flatten(1), 0.2))

    def features(self, x: Tensor, sigma: Tensor, dropout: Tensor | None = None) -> tuple[Tensor, ...]:
        """Maps [B, feature_widths[i], h, w] from fine to coarse; the last is one vector an image, h = w = 1.

        dropout: factors [B, *last_map] of the last map. They are an argument so that they depend on the image and not
        on the process.
        """
        level = self.level_embedding(level_features(sigma))
        scale = (sigma**2 + self.config.sigma_data**2).rsqrt()
        x = self.stem(functional.pixel_unshuffle(x * scale[:, None, None, None], PATCH))
        maps = []
        for block in self.blocks:
            x = block(x, level)
            maps.append(x)
        x = functional.silu(self.norm(x))
        x = x if dropout is None else x * dropout
        return (*maps, self.dense(x.flatten(1))[:, :, None, None])


class HalvingBlock(nn.Module):
    """Residual block that halves the sides; the embedding of the level [B, 64] scales and shifts its channels."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.norm0, self.first = nn.GroupNorm(8, cin), nn.Conv2d(cin, cout, 3, stride=2, padding=1)
        self.norm1, self.second = nn.GroupNorm(8, cout), nn.Conv2d(cout, cout, 3, padding=1)
        self.skip = nn.Conv2d(cin, cout, 1)
        self.level_embedding = nn.Linear(64, 2 * cout)
        nn.init.zeros_(self.level_embedding.weight)
        nn.init.zeros_(self.level_embedding.bias)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.level_embedding(level)[:, :, None, None].chunk(2, dim=1)
        h = self.norm1(self.first(functional.silu(self.norm0(x)))) * (1 + scale) + shift
        return self.skip(functional.avg_pool2d(x, 2, ceil_mode=True)) + self.second(functional.silu(h))


ADAM = AdamConfig(2e-3, (0.9, 0.999), final=0.0)


class Classification:
    """trainer.run.loop.Method for a NoisyClassifier."""

    served = "classifier"
    ema_width = 0.06

    def __init__(self, network: NoisyClassifier, compute: Compute, settings: AdamConfig = ADAM) -> None:
        self.config, self.adam = network.config, settings
        self.networks: dict[str, nn.Module] = {"classifier": network.train()}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"classifier": adam(network, settings)}
        run = wrap_for_compute(replicate(network, divided=compute.shard), compute)
        self.logits = lambda x, sigma, dropout: run(x, sigma, dropout).float()
        self.last_map = network.last_map

    def update(self, images: Tensor, labels: Tensor, progress: float, rng: Draws) -> dict[str, Tensor]:
        config = self.config
        # One shift for the whole batch, in all processes. There are enough batches for all shifts.
        shifts = [rng.shared_choice(lambda u: int(u * (2 * config.shift + 1)) - config.shift) for _ in range(2)]
        images = images.roll(shifts, dims=(2, 3))
        span = math.log(config.sigma_max / config.sigma_min)
        sigma = config.sigma_min * torch.exp(span * rng.uniform(len(images)))
        noisy = images + sigma[:, None, None, None] * rng.normal_like(images)
        logits = self.logits(noisy, sigma, self.dropout_factors(len(images), images, rng))
        loss = functional.cross_entropy(logits, labels, label_smoothing=config.smoothing)
        norm = descend(self.optimizers["classifier"], loss, self.adam, progress)
        right = (logits.argmax(dim=1) == labels).float().mean()
        return {"loss": loss.detach(), "right": right, "gradient": norm}

    def dropout_factors(self, count: int, like: Tensor, rng: Draws) -> Tensor:
        """Dropout factors [count, *last_map]: 0 with probability p, else 1 / (1 - p); p is `dropout`."""
        dropped = NormalDist().inv_cdf(self.config.dropout) if self.config.dropout else -math.inf
        drawn = rng.normal_like(like.new_empty(count, *self.last_map))
        return (drawn > dropped).to(like.dtype) / (1 - self.config.dropout)


def save_classifier(folder: Path, network: NoisyClassifier, facts: dict) -> None:
    """facts: of its training, JSON-able, stored in the file."""
    metadata = {"config": json.dumps({"format": FORMAT, **asdict(network.config)}), "facts": json.dumps(facts)}
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_atomically(folder / CLASSIFIER_FILE, save_tensors(tensors, metadata=metadata))


def classifier_hash(folder: Path) -> str:
    """SHA-256 of the file. A student's card stores it for each of its critics."""
    return hashlib.sha256((folder / CLASSIFIER_FILE).read_bytes()).hexdigest()


def load_classifier(folder: Path, device: str = "cpu") -> NoisyClassifier:
    """The frozen classifier of a folder. Raises CheckpointError when there is none, or it cannot be read."""
    path = folder / CLASSIFIER_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no {CLASSIFIER_FILE}: train one with fewstep trainer classifier --out {folder}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["config"])
            weights = {current_tensor_name(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts.pop("format") != FORMAT:
            raise CheckpointError(f"{path} was written by another version; train it again")
        network = NoisyClassifier(ClassifierConfig(**facts))
        network.load_state_dict(weights)
    except (SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is no readable classifier ({error}); train it again") from error
    return network.to(device).eval().requires_grad_(False)
