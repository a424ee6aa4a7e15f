"""The Qwen 2 and Qwen 2.5 families, and models distilled into them."""
