"""The hosts of the lab, and every fault that can be done to them.

A host's network namespace belongs to its container `vipd-lab-n1-host`; the daemon is alone in `vipd-lab-n1`. Frames are
dropped by a table of nft of our own in the namespace. Nothing here needs rights on the machine that the engine runs on.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor

from .engine import IMAGE, LabError

NODES = ("n1", "n2", "n3")
CLIENT = "client"
HOSTS = (*NODES, CLIENT)
VIPS = ("10.77.0.100", "fd77::100")
NETWORKS = {"service": "10.77.0.", "control": "10.78.0."}
TABLE = "netdev vipd_lab"


class Hosts:
    """Everything that the engine runs for the lab."""

    def __init__(self, engine):
        self.engine = engine

    # What there is

    def states(self):
        """Container by container what the engine says: running, paused, exited; nothing for one that is not there."""
        listing = self.engine.docker("ps", "-a", "--filter", "name=^vipd-lab-", "--format", "{{.Names}} {{.State}}").stdout
        pairs = (line.split() for line in listing.splitlines())
        return {name.removeprefix("vipd-lab-"): state for name, state in pairs}

    def require_up(self):
        states = self.states()
        if states.get(CLIENT) != "running" or any(states.get(f"{node}-host") != "running" for node in NODES):
            raise LabError("the lab is not up: docker/lab up")
        return states

    def daemon_state(self, node, states):
        """running, frozen, paused, or exited."""
        state = states.get(node, "gone")
        if state != "running":
            return state
        top = self.engine.docker("top", f"vipd-lab-{node}", "-o", "pid,stat", check=False).stdout.splitlines()
        return "frozen" if any(line.split()[-1].startswith("T") for line in top[1:]) else "running"

    def profile(self):
        """The timing profile that the daemons were started with."""
        variables = self.engine.docker("inspect", "--format", "{{json .Config.Env}}", "vipd-lab-n1").stdout
        return next((entry.partition("=")[2] for entry in json.loads(variables) if entry.startswith("PROFILE=")), "default")

    def links(self, host):
        """By network: the interface's name, its MAC address, its number at the switch, and whether there is a carrier."""
        found = {}
        for link in json.loads(self.exec(host, "ip", "-j", "address")):
            for network, prefix in NETWORKS.items():
                if any(address.get("local", "").startswith(prefix) for address in link["addr_info"]):
                    found[network] = {
                        "name": link["ifname"],
                        "mac": link["address"],
                        "peer": link["link_index"],
                        "carrier": "NO-CARRIER" not in link["flags"] and link["operstate"] != "LOWERLAYERDOWN",
                    }
        return found

    def exec(self, host, *command, input=None):
        interactive = ["-i"] if input is not None else []
        return self.engine.docker("exec", *interactive, container_of(host), *command, input=input).stdout

    def vipctl(self, node, *args, check=True):
        return self.engine.docker("exec", f"vipd-lab-{node}", "vipctl", *args, check=check, timeout=20)

    # Faults of the daemon

    def kill(self, node):
        self.engine.docker("kill", "-s", "KILL", f"vipd-lab-{node}")

    def stop(self, node):
        self.engine.docker("stop", "-t", "15", f"vipd-lab-{node}")

    def restart(self, node):
        self.engine.docker("restart", "-t", "15", f"vipd-lab-{node}")

    def freeze(self, node):
        self.engine.docker("kill", "-s", "STOP", f"vipd-lab-{node}")

    def thaw(self, node):
        self.engine.docker("kill", "-s", "CONT", f"vipd-lab-{node}")

    def pause(self, node):
        self.engine.docker("pause", f"vipd-lab-{node}")

    def unpause(self, node):
        self.engine.docker("unpause", f"vipd-lab-{node}")

    # Faults of the network

    def partition(self, one, other, one_way=False):
        """Neither group hears the other any more; with `one_way` only the second does not hear the first."""
        if both := set(one) & set(other):
            raise LabError(f"{', '.join(sorted(both))} cannot be on both sides")
        unheard = {host: one for host in other} | ({} if one_way else {host: other for host in one})
        links = self._all_links({*one, *other})

        def elements(set_name, hosts):
            macs = [link["mac"] for host in hosts for link in links[host].values()]
            return f"add element {TABLE} {set_name} {{ {', '.join(macs)} }}\n" if macs else ""

        # A cut around one host is a single transaction in that host: two hosts cannot be changed at one instant. Broadcasts
        # are then left, and only the receiver can tell whose they are.
        first = one if len(one) <= len(other) else other
        for host in first:
            deaf = [name for name, whom in unheard.items() if host in whom]
            self._nft(host, links[host], elements("cut_in", unheard.get(host, [])) + elements("cut_out", deaf))
        rest = [host for host in unheard if host not in first]
        self.each(lambda host: self._nft(host, links[host], elements("cut_in", unheard[host])), rest)

    def loss(self, host, percent):
        """Drops this share of the frames in each direction, on all networks."""
        if not 0 <= percent <= 100:
            raise LabError(f"{percent} %: between 0 and 100")
        rule = "drop" if percent == 100 else f"numgen random mod 100 < {percent} drop"
        added = f"add rule {TABLE} loss {rule}\n" if percent else ""
        self._nft(host, self.links(host), f"flush chain {TABLE} loss\n{added}")

    def isolate(self, host):
        """Nobody hears the host, nor it anybody; the carrier stays."""
        self.loss(host, 100)

    def link(self, host, up, network="service"):
        """Takes or gives the carrier: the switch's side of the link, which is in the engine's own network namespace."""
        link = self.links(host).get(network)
        if link is None:
            raise LabError(f"{host} has no link to the {network} network")
        self._set_links([link["peer"]], up)

    def heal(self):
        """Ends partitions, isolation and loss, and gives every link its carrier. Daemons stay as they are."""
        links = self._all_links(HOSTS)
        self.each(lambda host: self.exec(host, "nft", "-f", "-", input=f"add table {TABLE}\ndelete table {TABLE}\n"), HOSTS)
        dead = [link["peer"] for of_host in links.values() for link in of_host.values() if not link["carrier"]]
        if dead:
            self._set_links(dead, up=True)

    def faults(self):
        """By host: what is wrong with its network, in words."""
        links = self._all_links(HOSTS)
        return dict(zip(HOSTS, self.each(lambda host: self._faults(host, links), HOSTS)))

    def _faults(self, host, all_links):
        links = all_links[host]
        found = [f"{network} link down" for network, link in sorted(links.items()) if not link["carrier"]]
        listing = self.engine.docker("exec", container_of(host), "nft", "-j", "list", "table", *TABLE.split(), check=False)
        if listing.returncode != 0:
            return found
        known = {link["mac"]: name for name, of_host in all_links.items() for link in of_host.values()}
        for item in json.loads(listing.stdout)["nftables"]:
            cut = item.get("set", {})
            if cut.get("name") == "cut_in" and (unheard := cut.get("elem")):
                found.append("does not hear " + ", ".join(sorted({known.get(mac, mac) for mac in unheard})))
            rule = item.get("rule", {})
            if rule.get("chain") == "loss":
                shares = [part["match"]["right"] for part in rule["expr"] if "match" in part]
                found.append(f"loses {shares[0]} % of all frames" if shares else "isolated")
        return found

    def _set_links(self, numbers, up):
        wanted = "up" if up else "down"
        script = "".join(
            f"name=$(ip -o link | sed -n 's/^{number}: \\([^@:]*\\).*/\\1/p'); ip link set \"$name\" {wanted}; "
            for number in numbers
        )
        limits = ["--network", "host", "--cap-drop", "ALL", "--cap-add", "NET_ADMIN", "--read-only"]
        self.engine.docker("run", "--rm", *limits, IMAGE, "sh", "-ec", script)

    def _nft(self, host, links, commands):
        """Lays the table if it is not there, and changes it, in one transaction."""
        lines = [f"add table {TABLE}", f"add chain {TABLE} loss"]
        lines += [f"add set {TABLE} {name} {{ type ether_addr; }}" for name in ("cut_in", "cut_out")]
        for network, link in links.items():
            for chain, hook, rules in (
                (f"in_{network}", "ingress", ("ether saddr @cut_in drop", "jump loss")),
                (f"out_{network}", "egress", ("ether daddr @cut_out drop", "jump loss")),
            ):
                base = f"type filter hook {hook} device \"{link['name']}\" priority 0;"
                lines += [f"add chain {TABLE} {chain} {{ {base} }}", f"flush chain {TABLE} {chain}"]
                lines += [f"add rule {TABLE} {chain} {rule}" for rule in rules]
        self.exec(host, "nft", "-f", "-", input="\n".join(lines) + "\n" + commands)

    def _all_links(self, hosts):
        hosts = sorted(hosts)
        return dict(zip(hosts, self.each(self.links, hosts)))

    @staticmethod
    def each(job, items):
        """Does the job for all of them at once; the results in their order."""
        items = list(items)
        with ThreadPoolExecutor(max_workers=max(1, len(items))) as pool:
            return list(pool.map(job, items))


def container_of(host):
    return "vipd-lab-client" if host == CLIENT else f"vipd-lab-{host}-host"


def host_name(text, allowed=HOSTS):
    """One host."""
    if text not in allowed:
        raise LabError(f"{text} is not a host of the lab: {', '.join(allowed)}")
    return text


def host_names(text, allowed=HOSTS):
    """Hosts from a comma-separated list."""
    names = [name for name in text.split(",") if name]
    for name in names:
        host_name(name, allowed)
    if not names:
        raise LabError(f"name a host: {', '.join(allowed)}")
    return names


def wait_until(what, ready, timeout, step=0.05):
    """Asks until the answer is true; that answer."""
    deadline = time.monotonic() + timeout
    while not (answer := ready()):
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout} s")
        time.sleep(step)
    return answer
