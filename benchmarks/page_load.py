"""What the page costs before it can be used: requests, bytes, round trips one after the other, main-thread CPU time.

    python benchmarks/page_load.py --out build/page_load.json

Loads the page in headless Chromium from a server of its own, without and with a cache. Requests, bytes and round trips
are the same in every run; CPU time is that of the renderer's main thread; other programs on the machine lengthen it
less than time by the clock. The page can be used once its handlers are there and the models are listed: milliseconds of
the clock from the load event to that, negative where it is earlier, are printed for the record.
"""

from fewstep import extras

extras.name_missing()

import argparse
import re
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import result_file, table, write_result
from benchmarks.load.fuzz import server
from fewstep.ranges import whole
from server.http.page_files import FOLDER, INDEX
from tests.server.page.browser import Browser, browsing

COLUMNS = {
    "cache": "cache", "requests": "requests", "bytes": "bytes", "round_trips": "round trips",
    "script_ms": "script CPU ms", "task_ms": "all CPU ms", "usable_after_load_ms": "usable after load ms",
}  # fmt: skip
# The browser lists a request a moment after its answer was read.
LISTED = "performance.getEntriesByType('resource').some((each) => each.name.endsWith('/v1/models'))"
USABLE = f"document.readyState === 'complete' && document.querySelector('#label option') && {LISTED}"
TIMES = """
    const [page] = performance.getEntriesByType("navigation");
    const files = performance.getEntriesByType("resource");
    const models = files.find((each) => each.name.endsWith("/v1/models"));
    const before = files.filter((each) => each.startTime <= models.startTime && !each.name.includes("/v1/generate"));
    return {
      requests: 1 + before.length,
      bytes: [page, ...before].reduce((sum, each) => sum + each.transferSize, 0),
      usable_after_load_ms: Math.max(page.domContentLoadedEventEnd, models.responseEnd) - page.loadEventEnd,
    };
"""


def measure(browser: Browser, url: str, cached: bool) -> dict[str, Any]:
    """One load, in a window of its own process."""
    browser.open("about:blank")
    browser.devtools("Network.enable")
    browser.devtools("Network.setCacheDisabled", cacheDisabled=not cached)
    browser.devtools("Performance.enable", timeDomain="threadTicks")
    before = _cpu_s(browser)
    browser.open(url)
    browser.until(USABLE)
    times, after = browser.run(TIMES), _cpu_s(browser)
    used = {name: 1e3 * (after[key] - before.get(key, 0.0)) for name, key in CPU.items()}
    return {"cache": "full" if cached else "empty", **times, "round_trips": round_trips(), **used}


CPU = {"script_ms": "ScriptDuration", "task_ms": "TaskDuration"}


def _cpu_s(browser: Browser) -> dict[str, float]:
    """Of the main thread, by name; a new document in the same process goes on counting."""
    return {each["name"]: each["value"] for each in browser.devtools("Performance.getMetrics")["metrics"]}


def round_trips() -> int:
    """Requests that wait for one another: the page, its modules by how they name each other, the list of models.

    A module that the page names itself, by a script or a preload, waits for the page alone.
    """
    named = set(re.findall(r"page/(\w+\.mjs)\"", INDEX.read_text("utf-8")))
    depth, seen, level = 1, set[str](), named
    while level:
        depth, seen = depth + 1, seen | level
        level = {name for module in level for name in _imports(FOLDER / module)} - seen
    return depth + 1


def _imports(module: Path) -> list[str]:
    return re.findall(r"from \"\./(\w+\.mjs)\"", module.read_text("utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=whole(1), default=9, help="loads of each kind, of which the median counts (9)")
    parser.add_argument("--out", type=result_file, help="JSON file with the medians")
    options = parser.parse_args()
    with server([]) as url, tempfile.TemporaryDirectory() as folder, browsing(Path(folder)) as browser:
        measure(browser, url, cached=False)  # Chromium's own first load
        runs = [measure(browser, url, cached) for _ in range(options.runs) for cached in (False, True)]
    rows = [_medians([run for run in runs if run["cache"] == cache]) for cache in ("empty", "full")]
    print(table(rows, COLUMNS))
    if options.out:
        write_result(options.out, "page_load", {"runs": options.runs}, rows)


def _medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, str) else median(run[name] for run in runs) for name, value in runs[0].items()
    }


if __name__ == "__main__":
    main()
