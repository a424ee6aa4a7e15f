"""What scripts written for google-tunix take from its command line."""
