"""Every kind of output, by the name that --format gives it."""

from pathlib import Path

from server.bulk.journal import BulkError
from server.bulk.outputs import edm_zip, folder, npz, parquet, sheet, webdataset
from server.bulk.outputs.kind import Kind

KINDS: dict[str, Kind] = {
    "folder": folder.KIND, "sheet": sheet.KIND, "npz": npz.KIND, "zip": edm_zip.KIND, "webdataset": webdataset.KIND,
    "parquet": parquet.KIND,
}  # fmt: skip


def kind_for(out: Path, asked: str | None) -> str:
    """The name of the kind that --format asks for, or that the suffix of --out means. Raises BulkError."""
    suffixes = {kind.suffix: name for name, kind in KINDS.items() if kind.suffix}
    suffix = out.suffix.lower()
    if asked is None:
        if suffix and suffix not in suffixes and not out.is_dir():
            known = ", ".join(suffixes)
            raise BulkError(
                f"--out {out} ends in {suffix}, which means no format; end it in {known}, or in none for a folder"
            )
        return suffixes.get(suffix, "folder")
    kind = KINDS[asked]
    if kind.suffix != (suffix if suffix in suffixes else ""):
        wanted = f"a file that ends in {kind.suffix}" if kind.suffix else "a folder"
        raise BulkError(f"--format {asked} writes {wanted}, and --out is {out}")
    return asked
