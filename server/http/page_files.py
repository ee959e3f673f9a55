"""The page to try the models with: a folder of files, each served as it is. Nothing is built or comes from elsewhere.

`/` is the page itself; the files beside it are at /page/NAME. All are read when the server starts.
"""

import gzip
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from server.http.routes import Answer, Route

FOLDER = Path(__file__).parent / "page"
INDEX = FOLDER / "index.html"
MEDIA_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
}
# The page may load its own files and talk to this server, and to nothing else; no script or style is inline.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Where the page may run networks: WebAssembly is compiled, which has a word of its own; text is still not run as code.
LOCAL_POLICY = POLICY.replace("script-src 'self'", "script-src 'self' 'wasm-unsafe-eval'")
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # a browser asks again each time, and is told that nothing has changed (ETag)
}


# The codings in Accept-Encoding that gzip satisfies, and their quality (RFC 9110, section 12.5.3).
GZIP = re.compile(r"\s*(?:x-)?gzip\s*(?:;\s*q\s*=\s*([01](?:\.[0-9]*)?)\s*)?", re.IGNORECASE)
MAX_PACKED = 2**20  # larger files would take long at every start of the server


def page_file(path: Path, policy: str = POLICY) -> Answer:
    """What answers with a file of the page, compressed for those who take that. policy: what a document may do."""
    content, media_type = path.read_bytes(), MEDIA_TYPES[path.suffix]
    # Of the policy, too: a browser that is told that nothing has changed keeps the policy it has.
    digest = hashlib.sha256(content + policy.encode()).hexdigest()[:16]
    common = {**HEADERS, "Content-Security-Policy": policy, "Vary": "Accept-Encoding"}
    plain = {**common, "ETag": f'"{digest}"'}, content
    packed = {**common, "ETag": f'"{digest}-gzip"', "Content-Encoding": "gzip"}, gzip.compress(content, mtime=0)
    packed = packed if len(content) <= MAX_PACKED else plain

    async def answer(http: Request) -> Response:
        headers, body = packed if takes_gzip(http.headers.get("accept-encoding", "")) else plain
        if is_known(headers["ETag"], http):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=media_type, headers=headers)

    return answer


def takes_gzip(accept: str) -> bool:
    """Whether an Accept-Encoding names gzip, with a quality above 0."""
    found = [match for part in accept.split(",") if (match := GZIP.fullmatch(part))]
    return any(float(match[1] or 1) > 0 for match in found)


def is_known(tag: str, http: Request) -> bool:
    """Whether the browser has the file of this ETag."""
    known = [each.strip().removeprefix("W/") for each in http.headers.get("if-none-match", "").split(",")]
    return tag in known or known == ["*"]


def page_routes() -> list[Route]:
    """/page/NAME of each file but the page itself. They answer without a key: the page is where one is typed."""
    files = [path for path in sorted(FOLDER.iterdir()) if path.suffix in MEDIA_TYPES and path != INDEX]
    return [
        Route(f"/page/{path.name}", "GET", page_file(path), "A file of the page.", keyless=True, quiet=True)
        for path in files
    ]
