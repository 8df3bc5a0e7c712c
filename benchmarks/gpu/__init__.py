"""The phases of `benchmarks/gpu_session.py`, and what plays them."""
