"""A recipe held against devices before it is trusted to one: where two of them compute different numbers."""
