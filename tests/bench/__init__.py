"""Benchmarks: measured on request by `make bench`, never asserted by the tests."""
