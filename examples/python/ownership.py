#!/usr/bin/env python3
"""Which node owns which virtual address of a vipd cluster, asked from any other machine.

Once, from the root of the repository (`protos` may be any directory):

    python3 -m venv venv
    venv/bin/pip install -r examples/python/requirements.txt
    mkdir protos
    venv/bin/python -m grpc_tools.protoc -I proto --python_out=protos --pyi_out=protos --grpc_python_out=protos \\
        proto/vip/v1/*.proto

Then:

    export PYTHONPATH=protos
    venv/bin/python examples/python/ownership.py --endpoint n1:7401 --endpoint n2:7401 --endpoint n3:7401 watch

What the calls and fields mean stands in docs/api.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio
from vip.v1 import types_pb2, vip_pb2, vip_pb2_grpc

Answer = TypeVar("Answer")

CONSISTENCIES = {
    "linearizable": types_pb2.CONSISTENCY_LINEARIZABLE,
    "lease": types_pb2.CONSISTENCY_LEASE,
    "local": types_pb2.CONSISTENCY_LOCAL,
}

# Worth another attempt, also at another node. With every other code no node would answer otherwise.
TRY_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

# A watch hears from its node this often, and takes it for dead after three times as long.
PROGRESS_SECONDS = 1.0

CHANNEL_OPTIONS = (
    # gRPC waits up to two minutes before it connects again; a node that has restarted is there sooner.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # The most that a node sends; gRPC's own limit is 4 MiB.
    ("grpc.max_receive_message_length", 16 << 20),
    # Nodes are reached directly, whatever the variable http_proxy says.
    ("grpc.enable_http_proxy", 0),
    # Of a Unix socket gRPC makes an authority that servers refuse; over TCP nobody looks at it.
    ("grpc.default_authority", "localhost"),
)


class CallFailed(Exception):
    """A call failed, and nothing more is tried."""

    def __init__(self, reason: str, unavailable: bool) -> None:
        super().__init__(reason)
        # Nobody could be reached, or nobody had a leader and a quorum. Otherwise the cluster said no.
        self.unavailable = unavailable


class Interrupted(Exception):
    """A stream broke off; another one can take its place."""


class Cluster:
    """Some nodes of one cluster. Any of them answers: the one that did last is asked first, then the others in turn."""

    def __init__(self, endpoints: Iterable[str], timeout: float) -> None:
        self._timeout = timeout
        self._stubs: dict[str, vip_pb2_grpc.VipServiceStub] = {}
        self._turn: list[str] = []
        for endpoint in endpoints:
            self._ask_first(endpoint, len(self._turn))

    async def call(self, make: Callable[[vip_pb2_grpc.VipServiceStub, float], Awaitable[Answer]]) -> Answer:
        """Awaits `make(stub, timeout)` at one node after the other until one answers or the time is up."""
        deadline = time.monotonic() + self._timeout
        pause = 0.05
        while True:
            endpoint = self._turn[0]
            try:
                return await make(self._stubs[endpoint], self._share(deadline - time.monotonic()))
            except grpc.aio.AioRpcError as error:
                again = error.code() in TRY_AGAIN
                if not again or time.monotonic() + pause > deadline:
                    raise CallFailed(describe(endpoint, error), unavailable=again) from None
                self._pass_over(endpoint, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.5)

    async def watch(
        self, names: Sequence[str], consistency: types_pb2.Consistency
    ) -> AsyncIterator[tuple[types_pb2.ResponseHeader, vip_pb2.WatchEvent]]:
        """Yields what happens, and goes on at another node when one dies. Ends only with `CallFailed`."""
        request = vip_pb2.WatchRequest(names=names, consistency=consistency)
        request.progress_interval.FromMilliseconds(int(1_000 * PROGRESS_SECONDS))
        deadline: float | None = time.monotonic() + self._timeout
        pause = 0.05
        while True:
            endpoint = self._turn[0]
            try:
                async for message in self._messages(endpoint, request):
                    deadline, pause = None, 0.05
                    for event in message.events:
                        yield message.header, event
                    # Not before all of it has been dealt with. 0 in the middle of a snapshot, which begins anew then.
                    request.from_revision = message.resume_revision
            except Interrupted as reason:
                # Once there was an answer, the cluster comes back some time. Before, the endpoints may be wrong.
                if deadline is not None and time.monotonic() + pause > deadline:
                    raise CallFailed(str(reason), unavailable=True) from None
                print(f"ownership: going on elsewhere: {reason}", file=sys.stderr, flush=True)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.5)

    async def _messages(self, endpoint: str, request: vip_pb2.WatchRequest) -> AsyncIterator[vip_pb2.WatchResponse]:
        # No timeout here: it would be one for the whole stream. Each message has its own.
        stream = self._stubs[endpoint].Watch(request)
        limit = self._share(self._timeout)
        try:
            while (message := await asyncio.wait_for(stream.read(), limit)) is not grpc.aio.EOF:
                yield message
                limit = 3 * PROGRESS_SECONDS
            error, reason = None, f"{endpoint}: the node ended the stream"
        except asyncio.TimeoutError:
            error, reason = None, f"{endpoint}: nothing was heard for {limit:.1f} s"
        except grpc.aio.AioRpcError as status:
            error, reason = status, describe(endpoint, status)
            if status.code() not in TRY_AGAIN:
                raise CallFailed(reason, unavailable=False) from None
        finally:
            stream.cancel()
        self._pass_over(endpoint, error)
        raise Interrupted(reason)

    def _share(self, left: float) -> float:
        """The part of the time that one attempt gets, so that a dead host leaves some for the others."""
        return max(left / len(self._turn), 0.25)

    def _pass_over(self, endpoint: str, error: grpc.aio.AioRpcError | None) -> None:
        """Makes it another node's turn: the leader's, where the node named it, else that of the next one."""
        self._turn.append(self._turn.pop(self._turn.index(endpoint)))
        metadata = dict(error.trailing_metadata() or ()) if error else {}
        leader = metadata.get("vipd-leader")
        if leader and leader != endpoint:
            self._ask_first(str(leader), 0)

    def _ask_first(self, endpoint: str, place: int) -> None:
        """Gives an endpoint a place in the order, and a channel if it is new. A channel connects when it is used."""
        if endpoint not in self._stubs:
            channel = grpc.aio.insecure_channel(endpoint, options=CHANNEL_OPTIONS)
            self._stubs[endpoint] = vip_pb2_grpc.VipServiceStub(channel)
        else:
            self._turn.remove(endpoint)
        self._turn.insert(place, endpoint)


def describe(endpoint: str, error: grpc.aio.AioRpcError) -> str:
    return f"{endpoint}: {error.details()} ({error.code().name})"


def header_fields(header: types_pb2.ResponseHeader) -> dict[str, Any]:
    return {
        "cluster": header.cluster,
        "node_id": header.node_id,
        "term": header.term,
        "leader_id": header.leader_id if header.HasField("leader_id") else None,
        "revision": header.revision,
        "consistency": word(types_pb2.Consistency, header.consistency),
    }


def vip_fields(vip: types_pb2.Vip) -> dict[str, Any]:
    """A VIP with the keys that `vipctl --json` uses."""
    assignment = None
    if vip.HasField("assignment"):
        owner = vip.assignment.owner
        assignment = {
            "owner": {"id": owner.id, "name": owner.name},
            "epoch": vip.assignment.epoch,
            "term": vip.assignment.term,
        }
    lease_ms = vip.lease_remaining.ToNanoseconds() / 1e6 if vip.HasField("lease_remaining") else None
    return {
        "name": vip.spec.name,
        "address": vip.spec.address,
        "prefix_len": vip.spec.prefix_len,
        "interface": vip.spec.interface,
        "placement": word(types_pb2.Placement, vip.spec.placement),
        "assignment": assignment,
        "revision": vip.revision,
        "declared_revision": vip.declared_revision,
        "lease_remaining_ms": lease_ms,
        "holder_state": word(types_pb2.HolderState, vip.holder_state),
    }


def event_fields(event: vip_pb2.WatchEvent) -> dict[str, Any]:
    kind = event.WhichOneof("event")
    if kind == "snapshot_start":
        return {"event": kind, "reset": event.snapshot_start.reset}
    if kind == "put":
        return {"event": kind, **vip_fields(event.put)}
    if kind == "delete":
        return {"event": kind, "name": event.delete.name, "revision": event.delete.revision}
    # None: an event that this version of the protos does not know.
    return {"event": kind or "unknown"}


def word(enum: Any, number: int) -> str:
    """`HOLDER_STATE_ACTIVE` of `HolderState` as `active`; a newer node may send numbers without a name here."""
    if number not in enum.values():
        return str(number)
    prefix: str = enum.Name(0).removesuffix("UNSPECIFIED")
    return str(enum.Name(number)).removeprefix(prefix).lower()


def table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def vip_cells(vip: dict[str, Any]) -> list[str]:
    assignment, lease_ms = vip["assignment"], vip["lease_remaining_ms"]
    return [
        vip["name"],
        f"{vip['address']}/{vip['prefix_len']}",
        vip["interface"],
        assignment["owner"]["name"] or f"node {assignment['owner']['id']}" if assignment else "-",
        str(assignment["epoch"]) if assignment else "-",
        vip["holder_state"] if vip["holder_state"] != "unknown" else "-",
        f"{lease_ms:.0f} ms" if lease_ms is not None else "-",
    ]


def show_vips(header: types_pb2.ResponseHeader, vips: Iterable[types_pb2.Vip]) -> None:
    head = ["NAME", "ADDRESS", "INTERFACE", "OWNER", "EPOCH", "STATE", "LEASE LEFT"]
    table([head, *(vip_cells(vip_fields(vip)) for vip in vips)])
    leader = f"leader {header.leader_id}" if header.HasField("leader_id") else "no leader"
    consistency = word(types_pb2.Consistency, header.consistency)
    print(
        f"node {header.node_id} of {header.cluster}, {leader}, term {header.term}, "
        f"revision {header.revision}, {consistency}"
    )


def show_event(event: vip_pb2.WatchEvent) -> None:
    fields = event_fields(event)
    details = ""
    if fields["event"] == "put":
        name, address, interface, owner, epoch, _, _ = vip_cells(fields)
        details = f"{name} {address} on {interface}, owner {owner}, epoch {epoch}, revision {fields['revision']}"
    elif fields["event"] == "delete":
        details = f"{fields['name']}, revision {fields['revision']}"
    elif fields["event"] == "snapshot_start":
        details = "anew: changes in between were not seen" if fields["reset"] else ""
    print(f"{fields['event']:15} {details}".rstrip(), flush=True)


def show_json(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


async def run(args: argparse.Namespace) -> None:
    cluster = Cluster(args.endpoint, args.timeout)
    consistency = CONSISTENCIES[args.consistency]
    if args.command == "list":
        listed = await cluster.call(
            lambda stub, timeout: stub.List(vip_pb2.ListRequest(consistency=consistency), timeout=timeout)
        )
        if args.json:
            show_json({"header": header_fields(listed.header), "vips": [vip_fields(vip) for vip in listed.vips]})
        else:
            show_vips(listed.header, listed.vips)
    elif args.command == "get":
        request = vip_pb2.GetRequest(name=args.name, consistency=consistency)
        got = await cluster.call(lambda stub, timeout: stub.Get(request, timeout=timeout))
        if args.json:
            show_json({"header": header_fields(got.header), "vip": vip_fields(got.vip)})
        else:
            show_vips(got.header, [got.vip])
    else:
        async for header, event in cluster.watch(args.name, consistency):
            if event.WhichOneof("event") == "progress":
                continue
            if args.json:
                show_json({"header": header_fields(header), **event_fields(event)})
            else:
                show_event(event)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ownership",
        description="Which node owns which virtual address of a vipd cluster.",
        epilog="Exit codes: 0 done, 1 refused by the cluster, 2 wrong usage, 3 no node with a leader and a quorum "
        "was reached in time.",
    )
    parser.add_argument(
        "--endpoint",
        action="append",
        required=True,
        metavar="HOST:PORT",
        help="a node's api.listen, or unix:/run/vipd/vipd.sock; give several, each by its own option",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="how long a call may take with all its attempts; default 5",
    )
    parser.add_argument(
        "--consistency",
        choices=CONSISTENCIES,
        default="linearizable",
        help="how new the answer must be; a node without a quorum answers only local",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, an object on each line")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show all VIPs")
    get = commands.add_parser("get", help="show one VIP")
    get.add_argument("name")
    watch = commands.add_parser("watch", help="follow changes until interrupted")
    watch.add_argument("name", nargs="*", help="the VIPs to follow, existing or not; none: all")
    return parser.parse_args()


def main() -> int:
    try:
        asyncio.run(run(arguments()))
    except CallFailed as error:
        print(f"ownership: {error}", file=sys.stderr)
        return 3 if error.unavailable else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read has seen enough, as `head` does; nothing is left to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
