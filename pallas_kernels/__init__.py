"""Jagged operators of Kunlun: gdpa, window_attention and seed_attention, each behind one `api` call."""
