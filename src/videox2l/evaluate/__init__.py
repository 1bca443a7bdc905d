"""Benchmarks, methods to compare, paired statistics, reports."""
