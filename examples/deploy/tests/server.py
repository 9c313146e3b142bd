"""A server of the example as a process of its own, and what it tells: its log, and the spans that it exports."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PATIENCE_S = 600.0
"""Far more than a start takes on a busy machine; a process that ended is noticed at once."""


class Server:
    """One process of `serve.py` in the example's folder `folder`, with a model and further variables."""

    def __init__(self, folder: Path, model: Path | str, log: Path, **variables: str) -> None:
        self.port = free_port()
        self.log = log
        settings = {
            "ENVTUNE_MODEL": str(model),
            "ENVTUNE_PRECISION": "fp32",
            "ENVTUNE_TEMPERATURE": "0",
            "ENVTUNE_MAX_TOKENS": "96",
            "PORT": str(self.port),
            "LANGSMITH_TRACING": "false",
        }
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, folder / "serve.py"],
                env={**os.environ, **settings, **variables},
                cwd=folder.parent,  # another folder than the example's
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self) -> Server:
        """Returns once the server is there; raises with the log's end when the process ended instead."""
        until = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < until:
            try:
                if self.get("/ready")["ready"]:
                    return self
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        raise AssertionError(f"no server; its log ends with:\n{self.log.read_text()[-3000:]}")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The log's lines about an event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def end(self) -> None:
        """SIGTERM, and a server that puts everything away before it lets the signal end it."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE_S) == -signal.SIGTERM
        assert self.lines("dev persistence flush loop exiting")
        assert "Traceback" not in self.log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Collector:
    """An OpenTelemetry collector that keeps the spans it is sent: name -> attributes, as text."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, dict[str, str]]] = []
        spans = self.spans

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        for span in scope.spans:
                            values = {item.key: str(item.value) for item in span.attributes}
                            spans.append((span.name, values))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def variables(self) -> dict[str, str]:
        """What makes a server send its traces here and nowhere else."""
        return {
            "LANGSMITH_TRACING": "true",
            "LANGSMITH_OTEL_ENABLED": "true",
            "LANGSMITH_OTEL_ONLY": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        }

    def close(self) -> None:
        self._server.shutdown()
