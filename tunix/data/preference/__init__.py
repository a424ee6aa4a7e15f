"""Pairs and ratings, from rows to batches."""
