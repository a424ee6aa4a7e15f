"""The Qwen 3 family, dense and with experts."""
