"""Where metrics go, and the measures of the machine."""
