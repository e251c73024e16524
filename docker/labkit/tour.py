"""The tour: every fault, what should come of it, and what came of it."""

import json
import time
from dataclasses import dataclass
from typing import Callable

from .engine import LabError
from .hosts import NODES
from .observer import Observer, outage, turns

# The longest outage that a client may see, in 99 of 100 cases, in ms, by profile and by what happens.
BUDGETS = {
    "default": {"daemon": 50, "stop": 40, "host": 650, "none": 0},
    "fast": {"daemon": 40, "stop": 30, "host": 160, "none": 0},
}
# The budgets are those of an idle machine; a busy one gets this on top.
ALLOWANCE_MS = 100.0
# How long the outcome is watched, and how long everybody is watched after healing: longer than a lease.
WATCH = 1.0
HEALED = 1.2
# A daemon that has just started stays out of elections for a lease.
SETTLE = 1.0
PATIENCE = 30.0


@dataclass(frozen=True)
class Step:
    """One fault of the tour. The functions get the hosts, the owner, and the two others."""

    name: str
    told: str
    # "moves": another host holds the VIPs, "stays": the owner does, "silent": nobody does, "anyone": some host does.
    expect: str
    # Which of the budgets; None where there is none to keep.
    budget: str | None
    inject: Callable
    heal: Callable


def whole(hosts, owner, others):
    hosts.heal()


def again(hosts, owner, others):
    hosts.restart(owner)


STEPS = (
    Step("kill", "vipd on the owner is killed. Its address stays, and its kernel answers until the lease ends",
         "moves", "daemon", lambda h, o, rest: h.kill(o), again),
    Step("freeze", "vipd on the owner is frozen (SIGSTOP). When it wakes it must notice",
         "moves", "daemon", lambda h, o, rest: h.freeze(o), lambda h, o, rest: h.thaw(o)),
    Step("pause", "the engine pauses the owner's daemon; its kernel goes on answering ARP and ping",
         "moves", "daemon", lambda h, o, rest: h.pause(o), lambda h, o, rest: h.unpause(o)),
    Step("stop", "vipd on the owner is ended in order and hands over",
         "moves", "stop", lambda h, o, rest: h.stop(o), again),
    Step("minority", "the owner is cut off from both others; the client hears all three",
         "moves", "daemon", lambda h, o, rest: h.partition([o], rest), whole),
    Step("mute", "the others do not hear the owner any more; it hears them",
         "moves", "daemon", lambda h, o, rest: h.partition([o], rest, one_way=True), whole),
    Step("deaf", "the owner does not hear the others. They hear it, and wait for it a lease longer than it may act",
         "moves", "host", lambda h, o, rest: h.partition(rest, [o], one_way=True), whole),
    Step("isolate", "the owner is cut off from everybody, with its links up",
         "moves", "host", lambda h, o, rest: h.isolate(o), whole),
    Step("link", "the owner's service link loses its carrier",
         "moves", "host", lambda h, o, rest: h.link(o, False), whole),
    Step("follower", "one of the others is cut off from both: a majority stays with the owner",
         "stays", "none", lambda h, o, rest: h.partition([rest[0]], [o, rest[1]]), whole),
    Step("one-link", "the owner and one other do not hear each other; both hear the third",
         "stays", "none", lambda h, o, rest: h.partition([o], [rest[0]]), whole),
    Step("one-link-one-way", "one other does not hear the owner any more; the third hears both",
         "stays", "none", lambda h, o, rest: h.partition([o], [rest[0]], one_way=True), whole),
    Step("others-apart", "the two others do not hear each other; both hear the owner",
         "stays", "none", lambda h, o, rest: h.partition([rest[0]], [rest[1]]), whole),
    Step("loss", "the owner loses a third of its frames",
         "anyone", None, lambda h, o, rest: h.loss(o, 33), whole),
    Step("no-majority", "no node hears another: nobody may answer, until it heals",
         "silent", None, lambda h, o, rest: (h.partition([o], rest), h.partition([rest[0]], [rest[1]])), whole),
)  # fmt: skip
NAMES = tuple(step.name for step in STEPS)

EXPECTED = {
    "moves": "another host answers, within {limit:.0f} ms",
    "stays": "the owner goes on, without a break",
    "silent": "nobody answers; after healing somebody does",
    "anyone": "one host or none answers, never two; after healing somebody does",
}


def run_tour(hosts, *, as_json=False, only=None, allowance=ALLOWANCE_MS):
    """Does all steps, or those that are named. Whether every one went as it should."""
    steps = [step for step in STEPS if not only or step.name in only]
    results = []
    began = time.monotonic()
    with Observer() as observer:
        for step in steps:
            tell = (lambda text: None) if as_json else print_line
            result = run_step(hosts, observer, step, allowance, tell)
            results.append(result)
            if as_json:
                print(json.dumps(result), flush=True)
    kept = sum(result["passed"] for result in results)
    passed = kept == len(results)
    seconds = round(time.monotonic() - began, 1)
    if as_json:
        print(json.dumps({"passed": passed, "steps": len(results), "seconds": seconds}), flush=True)
    else:
        print_line(table(results))
        print_line(f"\n{kept} of {len(results)} as promised, {seconds:.0f} s")
    return passed


def run_step(hosts, observer, step, allowance, tell):
    """One step. What it found; an error only where the lab itself fails."""
    owner = observer.wait_held(timeout=PATIENCE, steady=SETTLE)
    others = [node for node in NODES if node != owner]
    budget = BUDGETS[hosts.profile()].get(step.budget)
    limit = None if budget is None else budget + allowance
    tell(f"\n── {step.name}: {step.told}.")
    tell(f"   {owner} is the owner. Expected: {EXPECTED[step.expect].format(limit=limit or 0)}.")
    before = observer.judge("before")
    problem = None
    try:
        step.inject(hosts, owner, others)
        problem = watch_outcome(observer, step.expect, owner)
        during = observer.judge(step.name)
    finally:
        step.heal(hosts, owner, others)
    try:
        holder = observer.wait_held(timeout=PATIENCE, steady=HEALED)
    except LabError as error:
        holder, problem = None, problem or f"after healing: {error}"
    healing = observer.judge("healed")
    # Also in what passed since the step before was judged.
    two = max(before["overlap_ms"], during["overlap_ms"], healing["overlap_ms"])
    away = outage(during)
    if two:
        problem = f"two hosts answered for {two:.1f} ms"
    elif problem is None and limit is not None and away > limit:
        problem = f"away for {away:.0f} ms, and {limit:.0f} are allowed"
    result = {
        "step": step.name,
        "owner": owner,
        "expected": step.expect,
        "seen": turns(during),
        "outage_ms": None if away == float("inf") else away,
        "budget_ms": budget,
        "limit_ms": limit,
        "two_holders_ms": two,
        "after_heal_ms": max(vip["outage_ms"] for vip in healing["vips"]),
        "after_heal_holder": holder,
        "prober_pause_ms": max(during["prober_pause_ms"], healing["prober_pause_ms"]),
        "problem": problem,
        "passed": problem is None,
    }
    tell("   " + seen_text(result))
    return result


def watch_outcome(observer, expect, owner):
    """Waits for what is expected, and a little longer. What is wrong, or None."""
    try:
        if expect == "moves":
            observer.wait_held(timeout=15, steady=WATCH, by=lambda host: host != owner)
        elif expect == "silent":
            deadline = time.monotonic() + 10
            while any(vip["holders"] for vip in observer.peek()["vips"]):
                if time.monotonic() > deadline:
                    return "somebody still answers after 10 s"
                time.sleep(0.05)
            time.sleep(WATCH)
            if any(vip["holders"] for vip in observer.peek()["vips"]):
                return "somebody answers without a majority"
        else:
            time.sleep(2 * WATCH)
            seen = observer.peek()
            if expect == "stays" and any(vip["holders"] != [owner] for vip in seen["vips"]):
                return f"the holders are {[vip['holders'] for vip in seen['vips']]}, not {owner}"
    except LabError as error:
        return str(error)
    return None


def seen_text(result):
    who = " → ".join(result["seen"]) or "nobody"
    away = "away at the end" if result["outage_ms"] is None else f"away for {result['outage_ms']:.0f} ms"
    verdict = "as promised" if result["passed"] else f"NOT AS PROMISED: {result['problem']}"
    return f"Seen: {who}, {away}; two holders for {result['two_holders_ms']:.0f} ms; {verdict}."


def table(results):
    lines = ["", f"{'step':17} {'away':>9} {'budget':>8} {'two holders':>12} {'after heal':>11}   result"]
    for result in results:
        away = "silent" if result["outage_ms"] is None else f"{result['outage_ms']:.0f} ms"
        budget = "-" if result["budget_ms"] is None else f"{result['budget_ms']:.0f} ms"
        lines.append(
            f"{result['step']:17} {away:>9} {budget:>8} {result['two_holders_ms']:>9.0f} ms"
            f" {result['after_heal_ms']:>8.0f} ms   {'OK' if result['passed'] else result['problem']}"
        )
    return "\n".join(lines)


def print_line(text):
    print(text, flush=True)
