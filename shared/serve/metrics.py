"""Prometheus metrics, under the names that Triton's dashboards and alerts already use.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter as Counts
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest
from starlette.requests import ClientDisconnect

from shared.errors import InvalidInputError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LABELS = ("model", "version")
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 600, 3600, 21600)
_REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
"""The methods of the routes."""


class Metrics:
    """The metrics of one server, in their own Prometheus registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = _LABELS) -> Counter:
            return Counter(f"nv_inference_{name}", text, labels, registry=self.registry)

        self.http = Histogram(
            "trivium_http_request_duration_seconds",
            "Seconds from a request's header to its answer's last byte",
            ("route", "method", "status"),
            registry=self.registry,
            buckets=_BUCKETS_S,
        )
        self.latency = Histogram(
            "trivium_inference_request_duration_seconds",
            "Seconds from a request's arrival to its answer",
            _LABELS,
            registry=self.registry,
            buckets=_BUCKETS_S,
        )

        def gauge(name: str, text: str, labels: tuple[str, ...]) -> Gauge:
            return Gauge(f"trivium_{name}", text, labels, registry=self.registry)

        self._worker_memory = gauge(
            "worker_resident_memory_bytes",
            "Resident memory of a model's worker processes, including those for its jobs",
            ("model",),
        )
        self._restarts = gauge("worker_restarts", "How often a model's workers were replaced", ("model",))
        self._jobs = gauge("jobs", "Unfinished jobs in the store", ("app", "state"))
        self._free = gauge("store_free_bytes", "Free space on the disk of the store", ())
        self.success = counter("request_success", "Requests that were answered")
        self.failure = counter("request_failure", "Requests that failed, by reason", (*_LABELS, "reason"))
        self.count = counter("count", "Inferences: a batch of n counts n")
        self.executions = counter("exec_count", "Executions: a batch counts one")
        self.pending = Gauge(
            "nv_inference_pending_request_count", "Requests that wait", _LABELS, registry=self.registry
        )
        self.request_us = counter("request_duration_us", "Total microseconds from a request's arrival to its answer")
        self.queue_us = counter("queue_duration_us", "Total microseconds that requests waited")
        self.input_us = counter("compute_input_duration_us", "Total microseconds spent reading inputs")
        self.infer_us = counter("compute_infer_duration_us", "Total microseconds spent computing requests")
        self.output_us = counter("compute_output_duration_us", "Total microseconds spent writing outputs")

    def of(self, model: str, version: str) -> ModelMetrics:
        """The metrics of one model. From now on they are exported, with the value 0 until something is counted."""
        return ModelMetrics(self, model, version)

    def observe_http_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Records an HTTP request; ``route`` is the path's pattern, to keep the number of label values small."""
        self.http.labels(route, method if method in METHODS else "other", str(status)).observe(seconds)

    def set_gauges(
        self,
        memory: Mapping[str, int],
        restarts: Mapping[str, int],
        jobs: Mapping[str, Mapping[str, int]],
        free_bytes: int,
    ) -> None:
        """Sets the gauges: memory in bytes and restarts by model, jobs by application and state, free disk space.

        Models, applications and states that are not given are no longer exported.
        """
        for gauge, values in ((self._worker_memory, memory), (self._restarts, restarts)):
            gauge.clear()
            for model, value in values.items():
                gauge.labels(model).set(value)
        self._jobs.clear()
        for app, states in jobs.items():
            for state, number in states.items():
                self._jobs.labels(app, state).set(number)
        self._free.set(free_bytes)

    def answers_by_status(self) -> dict[str, int]:
        """The number of HTTP requests by the status of their answer."""
        counts: Counts[str] = Counts()
        for sample in next(iter(self.http.collect())).samples:
            if sample.name.endswith("_count"):
                counts[sample.labels["status"]] += int(sample.value)
        return dict(sorted(counts.items()))

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format, without the suffix _total, which Triton's names do not have."""
        text = generate_latest(self.registry).decode()
        text = re.sub(r"^(# (HELP|TYPE) )?(nv_inference|trivium)_\w+_created.*\n", "", text, flags=re.MULTILINE)
        return re.sub(r"\b(nv_inference_\w+)_total\b", r"\1", text).encode()


class ModelMetrics:
    """The metrics of one version of a model. Its methods take durations in seconds."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        labels = {"model": model, "version": version}
        self._failure = metrics.failure
        self._labels = labels
        self.success = metrics.success.labels(**labels)
        self.count = metrics.count.labels(**labels)
        self.executions = metrics.executions.labels(**labels)
        self.pending = metrics.pending.labels(**labels)
        self._latency = metrics.latency.labels(**labels)
        self._request_us = metrics.request_us.labels(**labels)
        self._queue_us = metrics.queue_us.labels(**labels)
        self._input_us = metrics.input_us.labels(**labels)
        self._infer_us = metrics.infer_us.labels(**labels)
        self._output_us = metrics.output_us.labels(**labels)
        for reason in _REASONS:
            self._failure.labels(**labels, reason=reason)

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Counts a failure under Triton's reason for it if the block raises an exception."""
        try:
            yield
        except InvalidInputError as refusal:
            self._failed({503: "REJECTED", 504: "CANCELED"}.get(refusal.status, "OTHER"))
            raise
        except (asyncio.CancelledError, ClientDisconnect):
            self._failed("CANCELED")
            raise
        except Exception:
            self._failed("BACKEND")
            raise

    def totals(self) -> dict[str, int]:
        """The totals for Triton's model statistics; durations in nanoseconds."""
        failures = sum(_value(self._failure.labels(**self._labels, reason=reason)) for reason in _REASONS)
        return {
            "success": int(_value(self.success)),
            "fail": int(failures),
            "inferences": int(_value(self.count)),
            "executions": int(_value(self.executions)),
            "request_ns": int(1000 * _value(self._request_us)),
            "queue_ns": int(1000 * _value(self._queue_us)),
            "input_ns": int(1000 * _value(self._input_us)),
            "infer_ns": int(1000 * _value(self._infer_us)),
            "output_ns": int(1000 * _value(self._output_us)),
        }

    def waiting(self) -> int:
        return int(next(iter(self.pending.collect())).samples[0].value)

    def latency_quantile_s(self, quantile: float) -> float | None:
        """A quantile of the latency in seconds, such as 0.95, interpolated in the histogram as Prometheus does.

        None if nothing was answered yet.
        """
        samples = next(iter(self._latency.collect())).samples
        buckets = [(float(sample.labels["le"]), sample.value) for sample in samples if sample.name.endswith("_bucket")]
        rank, low, count_below = quantile * buckets[-1][1], 0.0, 0.0
        if not rank:
            return None
        for high, count in buckets:
            if count >= rank:
                return low if high == math.inf else low + (high - low) * (rank - count_below) / (count - count_below)
            low, count_below = high, count
        return low

    def _failed(self, reason: str) -> None:
        self._failure.labels(**self._labels, reason=reason).inc()

    def observe_execution(self, *, inferences: int, executions: int, waited_s: float, computed_s: float) -> None:
        """Records the execution of a batch; ``waited_s`` and ``computed_s`` are sums over its requests."""
        self.executions.inc(executions)
        self.count.inc(inferences)
        self._queue_us.inc(round(waited_s * 1e6))
        self._infer_us.inc(round(computed_s * 1e6))

    def observe_answer(self, *, request_s: float, input_s: float, output_s: float) -> None:
        """Records an answer and the time that it took."""
        self.success.inc()
        self._request_us.inc(round(request_s * 1e6))
        self._latency.observe(request_s)
        self._input_us.inc(round(input_s * 1e6))
        self._output_us.inc(round(output_s * 1e6))


def _value(counter: Counter) -> float:
    return next(
        sample.value for metric in counter.collect() for sample in metric.samples if sample.name.endswith("_total")
    )
