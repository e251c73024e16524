#!/usr/bin/env python3
"""Calls a method of a gRPC server by what the server tells of its protocol: nothing of vipd is needed here, nor generated.

    python3 -m venv venv
    venv/bin/pip install -r examples/python/requirements.txt
    venv/bin/python examples/python/generic.py n1:7401
    venv/bin/python examples/python/generic.py n1:7401 vip.v1.VipService/Get '{"name": "web4"}'

Without a method it lists all that there are. Requests and answers are protobuf's own JSON. Methods that answer with a stream
are not called; ownership.py shows how to follow one.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import grpc
from google.protobuf import descriptor, descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2 as reflection

CHANNEL_OPTIONS = (
    # The most that vipd sends; gRPC's own limit is 4 MiB.
    ("grpc.max_receive_message_length", 16 << 20),
    # Nodes are reached directly, whatever the variable http_proxy says.
    ("grpc.enable_http_proxy", 0),
    # Of a Unix socket gRPC makes an authority that servers refuse; over TCP nobody looks at it.
    ("grpc.default_authority", "localhost"),
)


class CallFailed(Exception):
    """The server has no such thing, or this cannot be asked of it."""


class Server:
    """A server with reflection, and what it has told of its protocol so far."""

    def __init__(self, endpoint: str, version: str, timeout: float) -> None:
        self._channel = grpc.insecure_channel(endpoint, options=CHANNEL_OPTIONS)
        self._timeout = timeout
        self._pool = descriptor_pool.DescriptorPool()
        self._known: set[str] = set()
        # The messages of v1 and v1alpha are the same but for the name of their package, which is not sent.
        self._ask = self._channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection.ServerReflectionResponse.FromString,
        )

    def methods(self) -> list[str]:
        """The full names of all methods, in order."""
        services = [service.name for service in self._told(list_services="").list_services_response.service]
        found = [(name, method.name) for name in services for method in self._service(name).methods]
        return sorted(f"{service}/{method}" for service, method in found)

    def call(self, name: str, request: str) -> str:
        """Calls `Service/Method` with a request in JSON, and returns the answer in JSON."""
        service, _, name_there = name.rpartition("/")
        method = self._service(service).methods_by_name.get(name_there)
        if method is None:
            raise CallFailed(f"{service} has no method {name_there!r}")
        if method.client_streaming or method.server_streaming:
            raise CallFailed(f"{name} is a stream")
        asked, answered = map(message_factory.GetMessageClass, (method.input_type, method.output_type))
        message = json_format.Parse(request, asked(), descriptor_pool=self._pool)
        call = self._channel.unary_unary(
            f"/{name}", request_serializer=asked.SerializeToString, response_deserializer=answered.FromString
        )
        return json_format.MessageToJson(call(message, timeout=self._timeout), descriptor_pool=self._pool)

    def _service(self, name: str) -> descriptor.ServiceDescriptor:
        self._learn(self._told(file_containing_symbol=name))
        return self._pool.FindServiceByName(name)

    def _learn(self, told: reflection.ServerReflectionResponse) -> None:
        """Takes files into the pool, what they import first: a pool knows of no file whose imports it lacks."""
        for content in told.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(content)
            if file.name in self._known:
                continue
            self._known.add(file.name)
            for imported in file.dependency:
                if imported not in self._known:
                    self._learn(self._told(file_by_filename=imported))
            self._pool.AddSerializedFile(content)

    def _told(self, **question: Any) -> reflection.ServerReflectionResponse:
        request = reflection.ServerReflectionRequest(**question)
        for response in self._ask(iter([request]), timeout=self._timeout):
            if response.HasField("error_response"):
                raise CallFailed(f"{next(iter(question.values()))}: {response.error_response.error_message}")
            return response
        raise CallFailed("the server ended the reflection without an answer")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="generic", description="Calls a method of a gRPC server by its reflection.")
    parser.add_argument("endpoint", help="HOST:PORT, or unix:/run/vipd/vipd.sock")
    parser.add_argument("method", nargs="?", metavar="SERVICE/METHOD", help="none: list them all")
    parser.add_argument("request", nargs="?", default="{}", metavar="JSON", help="default {}")
    parser.add_argument("--reflection", choices=("v1", "v1alpha"), default="v1", help="its version; default v1")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="of each call; default 5")
    # Options may stand anywhere.
    return parser.parse_intermixed_args()


def main() -> int:
    args = arguments()
    server = Server(args.endpoint, args.reflection, args.timeout)
    try:
        print(server.call(args.method, args.request) if args.method else "\n".join(server.methods()))
    except (CallFailed, json_format.ParseError) as error:
        print(f"generic: {error}", file=sys.stderr)
        return 1
    except grpc.RpcError as error:
        print(f"generic: {args.endpoint}: {error.details()} ({error.code().name})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
