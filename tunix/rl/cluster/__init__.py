"""The models that take part, where they live and how they keep in step."""
