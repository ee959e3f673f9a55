"""`fewstep trainer import`: make a checkpoint folder of a pretrained model.

fewstep trainer import edm-cifar10-32x32-cond-vp.pkl --out runs/cifar10 --class-names names.txt
fewstep trainer import ddpm-cifar10-32 --out runs/ddpm --data-name CIFAR-10

A file is read as a network pickle of EDM (DDPM++, NCSN++ or ADM) or EDM2 (their own are licensed CC BY-NC-SA 4.0),
without running the code inside it; a folder as a UNet2DModel of diffusers with its scheduler, or as a student that
`fewstep export diffusers` wrote. A consistency model of diffusers becomes a student, everything else a teacher.
Exit code 2: refused, the reason is on stderr, nothing was written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fewstep.card import CheckpointError
from fewstep.command_line import Positional, arg, parse
from fewstep.outputs import check_folder
from fewstep.ranges import Range, check_ranges
from trainer.importing.imported import UNKNOWN, Provenance, save_imported


@dataclass(frozen=True)
class ImportCommand:
    source: Annotated[Positional[Path], arg(metavar="FILE_OR_DIR")]
    """A network pickle of EDM or EDM2, or a diffusers folder."""
    out: Annotated[Path, arg(metavar="DIR")]
    """The checkpoint folder."""
    data_name: Annotated[str | None, arg(metavar="TEXT")] = None
    """What it was trained on (default: what the file says)."""
    licence: Annotated[str, arg(metavar="TEXT")] = UNKNOWN
    """Of the training images, kept in the card."""
    weights_licence: Annotated[str, arg(metavar="TEXT")] = UNKNOWN
    """Of the file, kept in the card."""
    class_names: Annotated[Path | None, arg(metavar="FILE")] = None
    """Names of classes 0, 1, ..., one a line."""
    sigma_data: Annotated[float | None, Range(0, 10, above=True)] = None
    """Standard deviation of the training images in [-1, 1] (default: 0.5; some have their own)."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(arguments: Sequence[str]) -> None:
    """Raises CheckpointError or OSError."""
    args = parse(ImportCommand, arguments, "fewstep trainer import", __doc__ or "")
    from fewstep.diffusers_folder import is_folder, read_folder
    from trainer.importing.diffusers_folder import import_diffusers
    from trainer.importing.edm_weights import import_edm

    check_folder(args.out)
    if is_folder(args.source):
        card = read_folder(args.source, args.out)
        print(f"{args.out}: the student of {args.source}, {card.dataset.name}")
        return
    provenance = Provenance(
        data_name=args.data_name,
        data_licence=args.licence,
        weights_licence=args.weights_licence,
        class_names=_names(args.class_names) if args.class_names else (),
    )
    source = args.source
    if source.is_dir():
        model = import_diffusers(source, args.sigma_data)
    elif source.is_file():
        model = import_edm(source, args.sigma_data)
    else:
        raise CheckpointError(f"{source} does not exist")
    card = save_imported(args.out, model, provenance)
    channels, resolution, _ = card.image_shape
    count = sum(tensor.numel() for tensor in model.weights.values())
    print(
        f"{args.out}: a {model.role} of {resolution}x{resolution} {'gray' if channels == 1 else 'RGB'}, "
        f"{model.config.classes} classes, from a {model.origin['class']} with {count:,} numbers"
    )
    if dropped := model.origin.get("dropped"):
        print(f"dropped {dropped}")
    if args.weights_licence == UNKNOWN:
        print("the card does not state the licence of the weights: --weights-licence TEXT does")


def _names(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not a text file in UTF-8") from error
    return tuple(line.strip() for line in lines if line.strip())
