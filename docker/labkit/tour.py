"""The tour: every fault, what should come of it, and what came of it."""

import json
import math
import time
from dataclasses import dataclass
from typing import Callable

from .engine import LabError
from .hosts import CLIENT, NODES
from .observer import Observer, last_frame, outage, turns

# The longest outage that a client may see, in 99 of 100 cases, in ms, by profile and by what happens. `election`: all nodes
# hear each other again, and none holds anything.
BUDGETS = {
    "default": {"daemon": 50, "stop": 40, "host": 650, "none": 0, "election": 1500},
    "fast": {"daemon": 40, "stop": 30, "host": 160, "none": 0, "election": 600},
}
# The budgets are those of an idle machine; a busy one gets this on top, and what the observer itself was held up, up to the
# second: an observer that was held up for longer has measured nothing, and that is no pass.
ALLOWANCE_MS = 100.0
PAUSE_AT_MOST_MS = 300.0
# How long the outcome is watched, and how long everybody is watched after healing: longer than a lease.
WATCH = 1.0
HEALED = 1.2
# A daemon that has just started stays out of elections for a lease.
SETTLE = 1.0
# After healing that was waited for already.
SETTLED = 0.2
PATIENCE = 30.0


@dataclass(frozen=True)
class Step:
    """One fault of the tour. The functions get the hosts, the owner, and the two others."""

    name: str
    told: str
    # "moves": another host holds the VIPs, "stays": the owner does all the time, "silent": nobody does, "hidden": the owner
    # does, and the client cannot hear it, "anyone": some host does.
    expect: str
    # Which of the budgets the outage has; of "silent" and "hidden" the time until nobody answers.
    budget: str
    inject: Callable
    heal: Callable
    # Which of them the outage has that healing costs.
    healing: str = "none"


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
    Step("one-link-back", "the owner does not hear one other any more; the third hears both, and both hear it",
         "stays", "none", lambda h, o, rest: h.partition([rest[0]], [o], one_way=True), whole),
    Step("follower-isolated", "one of the others is cut off from everybody, with its links up",
         "stays", "none", lambda h, o, rest: h.isolate(rest[0]), whole),
    Step("follower-mute", "nobody hears one of the others any more; it hears them",
         "stays", "none", lambda h, o, rest: h.partition([rest[0]], [o, rest[1]], one_way=True), whole),
    Step("follower-deaf", "one of the others hears nobody any more; they hear it",
         "stays", "none", lambda h, o, rest: h.partition([o, rest[1]], [rest[0]], one_way=True), whole),
    Step("control-link", "the owner's control link loses its carrier; its service link is whole",
         "moves", "daemon", lambda h, o, rest: h.link(o, False, "control"), whole),
    Step("client-cut", "the owner and the client do not hear each other; the nodes do, and nothing may move",
         "hidden", "host", lambda h, o, rest: h.partition([o], [CLIENT]), whole),
    Step("loss", "the owner loses a third of its frames",
         "anyone", "host", lambda h, o, rest: h.loss(o, 33), whole, "host"),
    Step("no-majority", "no node hears another: nobody may answer, until it heals",
         "silent", "host", lambda h, o, rest: (h.partition([o], rest), h.partition([rest[0]], [rest[1]])), whole, "election"),
)  # fmt: skip
NAMES = tuple(step.name for step in STEPS)

EXPECTED = {
    "moves": "another host answers, within {limit:.0f} ms",
    "stays": "the owner goes on, without a break",
    "silent": "nobody answers, after {limit:.0f} ms; after healing somebody does",
    "hidden": "nobody answers the client; after healing the same host does",
    "anyone": "one host or none answers, never two; it is back within {limit:.0f} ms",
}


def run_tour(hosts, *, as_json=False, only=None, allowance=ALLOWANCE_MS, tries=1):
    """Does all steps, or those that are named; one that missed a budget, and nothing else, up to `tries` times. Whether every
    one went as it should."""
    steps = [step for step in STEPS if not only or step.name in only]
    tell = (lambda text: None) if as_json else print_line
    results = []
    began = time.monotonic()
    with Observer() as observer:
        for step in steps:
            missed = []
            while True:
                settle = SETTLED if results and results[-1]["passed"] else SETTLE
                result = run_step(hosts, observer, step, allowance, tell, settle)
                result["missed_before"] = missed
                if result["passed"] or not result["only_late"] or len(missed) + 1 >= tries:
                    break
                missed = [*missed, result["problem"]]
                tell(f"   Once more, try {len(missed) + 1} of {tries}.")
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


def run_step(hosts, observer, step, allowance, tell, settle=SETTLE):
    """One step. What it found; an error only where the lab itself fails."""
    owner = observer.wait_held(timeout=PATIENCE, steady=settle)
    others = [node for node in NODES if node != owner]
    budgets = BUDGETS[hosts.profile()]
    budget = budgets[step.budget]
    tell(f"\n── {step.name}: {step.told}.")
    tell(f"   {owner} is the owner. Expected: {EXPECTED[step.expect].format(limit=budget + allowance)}.")
    began = time.monotonic()
    before = observer.judge("before")
    broken = None
    try:
        step.inject(hosts, owner, others)
        injecting_took = (time.monotonic() - began) * 1000
        broken = watch_outcome(observer, step.expect, owner)
        during = observer.judge(step.name)
    finally:
        healed_at = time.monotonic()
        step.heal(hosts, owner, others)
        healing_took = (time.monotonic() - healed_at) * 1000
    try:
        holder = observer.wait_held(timeout=PATIENCE, steady=HEALED)
    except LabError as error:
        holder, broken = None, broken or f"after healing: {error}"
    healing = observer.judge("healed")

    # Also in what passed since the step before was judged.
    two = max(before["overlap_ms"], during["overlap_ms"], healing["overlap_ms"])
    # With frames lost at random the last probe of a window says nothing; the next window goes on with it.
    silence = None
    if step.expect in ("silent", "hidden"):
        silence = max(0.0, last_frame(during) - injecting_took)
    away = outage(during) if step.expect != "anyone" else max(vip["outage_ms"] for vip in during["vips"])
    after = max(vip["outage_ms"] for vip in healing["vips"])
    spare, after_spare = (allowance + min(window["prober_pause_ms"], PAUSE_AT_MOST_MS) for window in (during, healing))
    # Where nobody answered to begin with, healing itself takes a part of the time.
    after_spare += healing_took if step.expect in ("silent", "hidden") else 0
    broken = broken or who_was_wrong(step.expect, owner, during, healing, holder)
    measured, what = (silence, "answered for") if step.expect in ("silent", "hidden") else (away, "away for")
    late = None
    if measured > budget + spare:
        late = f"{what} {measured:.0f} ms, and {budget + spare:.0f} are allowed"
    elif after > budgets[step.healing] + after_spare:
        late = f"after healing away for {after:.0f} ms, and {budgets[step.healing] + after_spare:.0f} are allowed"
    problem = f"two hosts answered for {two:.1f} ms" if two else broken or late
    result = {
        "step": step.name,
        "owner": owner,
        "expected": step.expect,
        "seen": turns(during),
        "outage_ms": None if math.isinf(away) else away,
        # When every cut was there.
        "silent_after_ms": silence,
        "budget_ms": budget,
        "limit_ms": budget + spare,
        "two_holders_ms": two,
        "after_heal_ms": after,
        "after_heal_holder": holder,
        "after_heal_limit_ms": budgets[step.healing] + after_spare,
        "prober_pause_ms": max(during["prober_pause_ms"], healing["prober_pause_ms"]),
        "problem": problem,
        # It went as it should, and took too long.
        "only_late": not two and not broken and late is not None,
        "passed": problem is None,
    }
    tell("   " + seen_text(result))
    return result


def watch_outcome(observer, expect, owner):
    """Waits for what is expected, and a little longer. What is wrong, or None."""
    try:
        if expect == "moves":
            observer.wait_held(timeout=15, steady=WATCH, by=lambda host: host != owner)
        elif expect in ("silent", "hidden"):
            began = time.monotonic()
            while any(vip["holders"] for vip in observer.peek()["vips"]):
                if time.monotonic() - began > 10:
                    return "somebody still answers after 10 s"
                time.sleep(0.05)
            time.sleep(WATCH)
            if any(vip["holders"] for vip in observer.peek()["vips"]):
                return "somebody answers the client again, with nothing healed"
        else:
            time.sleep(2 * WATCH)
    except LabError as error:
        return str(error)
    return None


def who_was_wrong(expect, owner, during, healing, holder):
    """Who answered and should not have, at any moment of the step; or None."""
    if expect in ("stays", "hidden"):
        allowed = [owner]
    elif expect == "moves":
        # Whoever took over keeps it when the former owner is back.
        allowed = [turns(during)[-1]] if turns(during) else []
    else:
        return None
    for window, when in ((during, "during the fault"), (healing, "after healing")):
        if window is during and expect == "moves":
            continue
        for vip in window["vips"]:
            seen = [turn["host"] for turn in vip["turns"]]
            if seen != allowed:
                return f"{when} {' → '.join(seen) or 'nobody'} answered for {vip['vip']}, not {' '.join(allowed)} alone"
    if holder not in allowed:
        return f"after healing {holder} holds the VIPs, not {' '.join(allowed)}"
    return None


def seen_text(result):
    who = " → ".join(result["seen"]) or "nobody"
    away = "away at the end" if result["outage_ms"] is None else f"away for {result['outage_ms']:.0f} ms"
    if result["silent_after_ms"] is not None:
        away = f"nobody after {result['silent_after_ms']:.0f} ms, and away for {result['after_heal_ms']:.0f} ms after healing"
    verdict = "as promised" if result["passed"] else f"NOT AS PROMISED: {result['problem']}"
    return f"Seen: {who}, {away}; two holders for {result['two_holders_ms']:.0f} ms; {verdict}."


def table(results):
    lines = ["", f"{'step':17} {'away':>9} {'budget':>8} {'two holders':>12} {'after heal':>11}   result"]
    for result in results:
        away = "silent" if result["outage_ms"] is None else f"{result['outage_ms']:.0f} ms"
        budget = f"{result['budget_ms']:.0f} ms"
        lines.append(
            f"{result['step']:17} {away:>9} {budget:>8} {result['two_holders_ms']:>9.0f} ms"
            f" {result['after_heal_ms']:>8.0f} ms   {'OK' if result['passed'] else result['problem']}"
        )
    return "\n".join(lines)


def print_line(text):
    print(text, flush=True)
