"""What turns files and pixels into model input."""
