"""What YAML may say: the configs of the library and what is about files and runs."""
