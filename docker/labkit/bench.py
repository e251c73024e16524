"""`bench`: one fault of the owner many times, measured from the client."""

import json
import math

from .engine import say
from .observer import Observer
from .tour import STEPS, run_step

# What is measured, and the step of the tour that it is.
FAULTS = {"kill": "kill", "freeze": "freeze", "isolate": "isolate", "partition": "minority"}


def run_bench(hosts, faults, trials, *, as_json=False, output=None):
    """Measures, and prints a row of a Markdown table for each fault. Whether never two hosts answered and all came back."""
    steps = {step.name: step for step in STEPS}
    sink = open(output, "w") if output else None
    if not as_json:
        print("| fault | trials | p50 | p99 | max | budget | two holders | longest |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
    passed = True
    with Observer() as observer:
        for fault in faults or FAULTS:
            results = []
            for number in range(1, trials + 1):
                # The budget is told, not judged: a percentile of few trials is no percentile.
                result = run_step(hosts, observer, steps[FAULTS[fault]], math.inf, lambda text: None)
                results.append(result)
                del result["limit_ms"]
                write(sink, {"fault": fault, "trial": number, **result})
                if not result["passed"]:
                    say(f"{fault}, trial {number}: {result['problem']}")
            summary = summarize(fault, results)
            write(sink, {"summary": summary})
            passed &= summary["failed"] == 0
            print(json.dumps(summary) if as_json else row(summary), flush=True)
    if sink:
        sink.close()
    return passed


def summarize(fault, results):
    away = sorted(math.inf if result["outage_ms"] is None else result["outage_ms"] for result in results)
    two = [result["two_holders_ms"] for result in results]
    spread = {name: None if math.isinf(value) else value for name, value in (
        ("p50_ms", rank(away, 50)), ("p99_ms", rank(away, 99)), ("max_ms", rank(away, 100)))}  # fmt: skip
    return {
        "fault": fault,
        "trials": len(results),
        **spread,
        "budget_ms": results[0]["budget_ms"],
        "trials_with_two_holders": sum(1 for length in two if length),
        "two_holders_max_ms": max(two),
        "failed": sum(1 for result in results if not result["passed"]),
        "prober_pause_max_ms": max(result["prober_pause_ms"] for result in results),
    }


def rank(ordered, percent):
    """A percentile by nearest rank: a value that was measured."""
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1]


def row(summary):
    def ms(value):
        return "not back" if value is None else f"{value:.0f} ms"

    cells = (
        summary["fault"], summary["trials"],
        ms(summary["p50_ms"]), ms(summary["p99_ms"]), ms(summary["max_ms"]),
        f"{ms(summary['budget_ms'])} at p99",
        f"{summary['trials_with_two_holders']} trials", ms(summary["two_holders_max_ms"]),
    )  # fmt: skip
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def write(sink, value):
    if sink:
        sink.write(json.dumps(value) + "\n")
        sink.flush()
