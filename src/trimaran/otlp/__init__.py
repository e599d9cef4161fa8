"""Sessions as traces, over OTLP: ``open_telemetry(..., transport=OtlpTransport())``.

For everything that takes OpenTelemetry's protocol over HTTP: Phoenix, MLflow, collectors.
No part of OpenTelemetry's SDK is imported, and none of its global state is touched.
"""

from trimaran.otlp.conventions import (
    LANGFUSE,
    MAPPING_VERSION,
    MLFLOW,
    OPENINFERENCE,
    PLAIN,
    Dialect,
    Kind,
    Shape,
)
from trimaran.otlp.environment import OtlpSettings
from trimaran.otlp.transport import OtlpTransport

__all__ = [
    "LANGFUSE",
    "MAPPING_VERSION",
    "MLFLOW",
    "OPENINFERENCE",
    "PLAIN",
    "Dialect",
    "Kind",
    "OtlpSettings",
    "OtlpTransport",
    "Shape",
]
