"""Hugging Face's files: reading and writing configs, weights and cards."""
