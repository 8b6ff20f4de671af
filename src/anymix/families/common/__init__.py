"""Functions more than one family needs. Functions only: no base classes, and nothing here knows a family."""
