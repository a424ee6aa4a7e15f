"""Forward passes of models that are not trained."""
