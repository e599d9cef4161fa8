"""Telemetry for AI-agent sessions, native to trio."""
