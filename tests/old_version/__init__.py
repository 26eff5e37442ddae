"""Files of the version before the packages, and what makes them."""
