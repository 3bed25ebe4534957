"""Tests of one service or one part of the chassis, on a real PostgreSQL, Valkey and NATS."""
