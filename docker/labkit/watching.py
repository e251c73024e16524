"""`watch`: who answers, as the client sees it, line by line."""

import json
import time

from .observer import Observer

# How often is looked, and how long a window without news is.
STEP = 0.2
QUIET_WINDOW = 2.0


def watch(as_json, seconds):
    """Prints a line whenever something changes, and one every other second; until Ctrl-C or for some seconds."""
    began = time.monotonic()
    shown, opened = None, began
    with Observer() as observer:
        try:
            while seconds is None or time.monotonic() - began < seconds:
                time.sleep(STEP)
                seen = observer.peek()
                now = time.monotonic()
                state = [(vip["vip"], tuple(vip["holders"]), vip["open"]) for vip in seen["vips"]]
                settled = not any(vip["open"] for vip in seen["vips"])
                worth_telling = seen["overlap_ms"] > 0 or any(vip["outage_ms"] for vip in seen["vips"])
                if state != shown or (settled and worth_telling) or now - opened > QUIET_WINDOW:
                    at = now - began
                    print(json.dumps({"at": round(at, 1), **seen}) if as_json else line(at, seen), flush=True)
                    shown = state
                    # An outage that has not ended belongs to the next line, too: its length is told when it has.
                    if settled:
                        observer.judge()
                        opened = now
                    elif now - opened > QUIET_WINDOW:
                        opened = now
        except KeyboardInterrupt:
            pass


def line(at, seen):
    parts = []
    for vip in seen["vips"]:
        # One after another within the last moments; at once is told below.
        order = [turn["host"] for turn in vip["turns"] if turn["host"] in vip["holders"]]
        who = " → ".join(order) or "nobody"
        length = f"{vip['outage_ms']:.0f} ms"
        if vip["open"]:
            who += f", no answer for {length}"
        elif vip["outage_ms"]:
            who += f", was away for {length}"
        parts.append(f"{vip['vip']}: {who}")
    two = f"   TWO HOSTS ANSWERED for {seen['overlap_ms']:.1f} ms" if seen["overlap_ms"] else ""
    return f"{at:7.1f}  " + "   ".join(parts) + two
