"""A cell that does nothing but answer, under three orchestrators. For bench_orchestration.py."""
