"""Traces of requests by OpenTelemetry, across clients and servers. Off unless asked for."""
