"""`bench`: one fault of the owner many times, measured from the client."""

import json
import math
import platform
import time
from pathlib import Path

from .engine import LabError, say
from .observer import Observer
from .tour import STEPS, run_step

# What is measured, and the step of the tour that it is.
FAULTS = {"kill": "kill", "freeze": "freeze", "isolate": "isolate", "partition": "minority"}

# Between these two lines of a page `--markdown` writes.
BEGIN = "<!-- begin: written by `docker/lab bench`; edit nothing between these two marks -->"
END = "<!-- end: written by `docker/lab bench` -->"


def run_bench(hosts, faults, trials, *, as_json=False, output=None, markdown=None):
    """Measures, and prints a row of a Markdown table for each fault. Whether never two hosts answered and all came back."""
    if trials < 1:
        raise LabError(f"{trials} trials: at least 1")
    steps = {step.name: step for step in STEPS}
    page = Page(markdown) if markdown else None
    sink = open(output, "w") if output else None
    measured = about(hosts)
    write(sink, {"about": measured})
    if not as_json:
        print("\n".join(HEAD), flush=True)
    summaries = []
    with Observer() as observer:
        for fault in faults or FAULTS:
            results = []
            for number in range(1, trials + 1):
                # The budget is told, not judged: a percentile of few trials is no percentile.
                result = run_step(hosts, observer, steps[FAULTS[fault]], math.inf, lambda text: None)
                results.append(result)
                del result["limit_ms"], result["after_heal_limit_ms"]
                write(sink, {"fault": fault, "trial": number, **result})
                if not result["passed"]:
                    say(f"{fault}, trial {number}: {result['problem']}")
            summary = {"profile": measured["profile"], **summarize(fault, results)}
            write(sink, {"summary": summary})
            summaries.append(summary)
            print(json.dumps(summary) if as_json else row(summary), flush=True)
    if sink:
        sink.close()
    if page:
        page.write([told(measured), "", *HEAD, *map(row, summaries)])
    return all(summary["failed"] == 0 for summary in summaries)


def about(hosts):
    """What was measured, where and when."""
    vipd = hosts.engine.docker("exec", "vipd-lab-n1", "vipd", "--version").stdout.strip()
    engine = hosts.engine.docker("version", "--format", "{{.Server.Version}} on Linux {{.Server.KernelVersion}}").stdout
    cpus = hosts.engine.docker("info", "--format", "{{.NCPU}}").stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "vipd": vipd,
        "profile": hosts.profile(),
        "engine": engine.strip(),
        "processors": int(cpus),
        "processor": processor(),
    }


def processor():
    """The model of this machine's processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def told(measured):
    return (
        f"{measured['date']}: {measured['processor']} with {measured['processors']} processors, Docker"
        f" {measured['engine']}. {measured['vipd']}."
    )


def summarize(fault, results):
    away = sorted(math.inf if result["outage_ms"] is None else result["outage_ms"] for result in results)
    healing = sorted(result["after_heal_ms"] for result in results)
    two = [result["two_holders_ms"] for result in results]
    spread = {f"p{percent}_ms": rank(away, percent) for percent in (50, 95, 99)} | {"max_ms": away[-1]}
    return {
        "fault": fault,
        "trials": len(results),
        **{name: None if math.isinf(value) else value for name, value in spread.items()},
        "budget_ms": results[0]["budget_ms"],
        "reached": spread["p99_ms"] <= results[0]["budget_ms"],
        "after_heal_p99_ms": rank(healing, 99),
        "trials_with_two_holders": sum(1 for length in two if length),
        "two_holders_max_ms": max(two),
        "failed": sum(1 for result in results if not result["passed"]),
        "prober_pause_max_ms": max(result["prober_pause_ms"] for result in results),
    }


def rank(ordered, percent):
    """A percentile by nearest rank: a value that was measured."""
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1]


# The columns of docs/benchmarks.md, in milliseconds.
HEAD = (
    "| profile | fault | trials | outage p50 | p95 | p99 | max | goal p99 | reached | after healing p99 | two hosts |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)


def row(summary):
    def ms(value):
        return "not back" if value is None else f"{value:.1f}"

    two = ms(summary["two_holders_max_ms"])
    cells = (
        summary["profile"], summary["fault"], summary["trials"],
        *(ms(summary[name]) for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms")),
        f"≤ {summary['budget_ms']}", "yes" if summary["reached"] else "**no**", ms(summary["after_heal_p99_ms"]),
        two if not summary["trials_with_two_holders"] else f"**{two}** in {summary['trials_with_two_holders']}",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


class Page:
    """A Markdown file with a place for the table. It is looked at before anything is measured."""

    def __init__(self, path):
        self.path = Path(path)
        self._around()

    def _around(self):
        try:
            text = self.path.read_text()
        except OSError as error:
            raise LabError(f"cannot read {self.path}: {error.strerror}") from error
        before, begun, rest = text.partition(BEGIN)
        _, ended, after = rest.partition(END)
        if not begun or not ended:
            raise LabError(f"{self.path} has no place for the table. Where it shall be, write\n{BEGIN}\n{END}")
        return before, after

    def write(self, lines):
        before, after = self._around()
        self.path.write_text("\n".join([before + BEGIN, "", *lines, "", END + after]))


def write(sink, value):
    if sink:
        sink.write(json.dumps(value) + "\n")
        sink.flush()
