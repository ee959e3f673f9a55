"""`GET /docs`: the OpenAPI document as one page of HTML, without scripts and without anything to load."""

import json
import shlex
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

DOCS_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
LISTED = 24  # values of a field that are written out
STYLE = """
:root { color-scheme: light dark; --page: #f6f6f9; --card: #fff; --ink: #17171c; --soft: #5b5b68; --line: #dedee6; }
@media (prefers-color-scheme: dark) {
  :root { --page: #101014; --card: #1a1a21; --ink: #ececf1; --soft: #a3a3b1; --line: #30303b; }
}
* { box-sizing: border-box; }
body { margin: auto; padding: 1rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; margin: 1rem 0; }
h1, h2, h3, p, pre { margin: 0 0 .6rem; } h2 { font-size: 1.1rem; overflow-wrap: anywhere; } h3 { font-size: 1rem; }
pre, code { font: .875rem/1.5 ui-monospace, monospace; } code { overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .6rem; border: 1px solid var(--line);
  border-radius: .4rem; }
table { width: 100%; border-collapse: collapse; margin-bottom: 1rem; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; }
th { white-space: nowrap; width: 8rem; }
td:nth-child(2) { width: 40%; }
thead th { border: 0; color: var(--soft); font-weight: 400; }
@media (max-width: 40rem) { thead { display: none; } tr { display: block; border-top: 1px solid var(--line); }
  th, td, td:nth-child(2) { display: block; width: auto; border: 0; padding: .1rem 0; } }
"""


def docs_page(document: Mapping[str, Any], address: str) -> str:
    """HTML. address: of the server as the reader wrote it, such as http://127.0.0.1:8000, for the examples."""
    title = f"{document['info']['title']} {document['info']['version']}"
    sections = [
        _route(document, address, path, method, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f"<p>{escape(document['info']['description'])}</p>{''.join(sections)}</body></html>\n"
    )


def _route(document: Mapping[str, Any], address: str, path: str, method: str, operation: Mapping[str, Any]) -> str:
    parts = [f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"]
    parts.append(f"<pre>{escape(curl(document, address, path, method, operation))}</pre>")
    body = json_body(operation)
    for part in body.get("schema", {}).get("anyOf", [body["schema"]] if body else []):
        schema = _resolved(document, part)
        fields = [_field(name, each, name in schema.get("required", ())) for name, each in schema["properties"].items()]
        parts.append(f"<h3>{escape(part.get('$ref', 'Body').rpartition('/')[2])}</h3>")
        parts.append(_table(("Field", "Allowed", "Meaning"), fields))
    answers = [(status, _resolved(document, answer)) for status, answer in operation["responses"].items()]
    rows = [(status, ", ".join(answer.get("content", ())), answer["description"]) for status, answer in answers]
    parts.append(_table(("Answer", "Media type", "Meaning"), rows))
    named = {
        name: _resolved(document, each) for _, answer in answers for name, each in answer.get("headers", {}).items()
    }
    parts.append(
        _table(("Header", "Type", "Meaning"), [(n, h["schema"]["type"], h["description"]) for n, h in named.items()])
    )
    return f"<section>{''.join(parts)}</section>"


def json_body(operation: Mapping[str, Any]) -> Mapping[str, Any]:
    """The description of an operation's JSON body; empty where it has none."""
    return operation.get("requestBody", {}).get("content", {}).get("application/json", {})


def curl(document: Mapping[str, Any], address: str, path: str, method: str, operation: Mapping[str, Any]) -> str:
    """A command that works in a POSIX shell; where a key is needed, with the key in $FEWSTEP_KEY."""
    words = ["curl", *(["-X", method.upper()] if method not in ("get", "post") else []), shlex.quote(address + path)]
    if operation.get("security", document.get("security")):
        words += ["-H", '"X-API-Key: $FEWSTEP_KEY"']
    if body := json_body(operation):
        words += ["-H", "'Content-Type: application/json'", "-d", shlex.quote(json.dumps(body.get("example", {})))]
    media_type = next(iter(operation["responses"]["200"].get("content", ())), "")
    if media_type.startswith("image/"):
        words += ["-o", f"image.{media_type.partition('/')[2]}"]
    return " ".join(words)


def allowed(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words; null, which means absent, is left out."""
    if "title" in schema:
        return schema["title"]
    if "anyOf" in schema:
        parts = [allowed(each) for each in schema["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if "enum" in schema:
        values = [json.dumps(value, ensure_ascii=False) for value in schema["enum"] if value is not None]
        return ", ".join(values[:LISTED]) + (f", ... ({len(values)} values)" if len(values) > LISTED else "")
    types = schema.get("type", "any value")
    named = " or ".join(each for each in ([types] if isinstance(types, str) else types) if each != "null")
    if "maxLength" in schema:
        return f"{named} of at most {schema['maxLength']} characters"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return ", ".join(
        [named or "leave it out", *(f"{word} {schema[key]}" for key, word in words.items() if key in schema)]
    )


def _field(name: str, schema: Mapping[str, Any], required: bool) -> tuple[str, str, str]:
    default = f" Default: {json.dumps(schema['default'])}." if schema.get("default") is not None else ""
    return name + (" (required)" if required else ""), allowed(schema), schema.get("description", "") + default


def _resolved(document: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    """The component that a reference leads to; anything else as it is."""
    if "$ref" not in part:
        return part
    _, components, kind, name = part["$ref"].split("/")
    return document[components][kind][name]


def _table(head: Iterable[str], rows: Iterable[tuple[str, str, str]]) -> str:
    heads = "".join(f"<th>{escape(each)}</th>" for each in head)
    body = "".join(
        f"<tr><th><code>{escape(name)}</code></th><td>{escape(what)}</td><td>{escape(why)}</td></tr>"
        for name, what, why in rows
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
