"""What scripts written for google-tunix take from here."""

from tunix.utils import reference_names

DEBUG_LEVELS = {"DEBUG": 1, "INFO": 0, "WARNING": -1, "ERROR": -2, "FATAL": -3}
"""Names of levels, as numbers of ``absl.logging.set_verbosity``."""

__getattr__ = reference_names.hints(__name__)
