"""The observer in the client's container: `vip-lab observe`, asked over a pipe. It alone judges, by packets."""

import json
import subprocess
import time

from .engine import LabError
from .hosts import VIPS


class Observer:
    """A running observer; a context manager."""

    def __init__(self):
        command = ["docker", "exec", "-i", "vipd-lab-client", "vip-lab", "observe"]
        for vip in VIPS:
            command += ["--vip", vip]
        # In a session of its own: Ctrl-C is for the lab, which ends the observer by closing the pipe.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def peek(self):
        """What was seen since the last judgement."""
        return self._ask("peek")

    def judge(self, label=""):
        """The same, and the next window begins."""
        return self._ask(f"judge {label}")

    def _ask(self, line):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise LabError(f"the observer has ended: {self.process.stderr.read().strip()}")
        return json.loads(answer)

    def holders(self):
        """Who holds each VIP now: one host for each that exactly one host speaks for, else None."""
        return [only(vip["holders"]) for vip in self.peek()["vips"]]

    def wait_held(self, timeout, steady=1.0, by=lambda host: True):
        """Waits until one host that counts has held every VIP, with answers, for `steady` seconds; that host."""
        began = time.monotonic()
        held_by, since = None, began
        while True:
            seen = self.peek()
            holder = only({only(vip["holders"]) for vip in seen["vips"]})
            answered = not any(vip["open"] for vip in seen["vips"])
            now = time.monotonic()
            if holder is None or not answered or not by(holder) or holder != held_by:
                held_by, since = holder if holder is not None and answered and by(holder) else None, now
            elif now - since >= steady:
                return holder
            if now - began > timeout:
                holders = {vip["vip"]: vip["holders"] for vip in seen["vips"]}
                raise LabError(f"no host has held all VIPs for {steady} s; after {timeout} s the holders are {holders}")
            time.sleep(0.03)


def only(items):
    """The only one of them, or None."""
    items = list(items)
    return items[0] if len(items) == 1 else None


def outage(window):
    """The longest outage of any VIP in a window, in milliseconds; infinite when one is not answered at its end."""
    if any(vip["open"] for vip in window["vips"]):
        return float("inf")
    return max(vip["outage_ms"] for vip in window["vips"])


def last_frame(window):
    """When anybody spoke for any VIP last, in milliseconds from the beginning of the window."""
    return max((turn["last_ms"] for vip in window["vips"] for turn in vip["turns"]), default=0.0)


def turns(window):
    """Who held the first VIP, one after another."""
    return [turn["host"] for turn in window["vips"][0]["turns"]]
